"""The fuzzing of the HTTP edge as a command, short; and its grammar."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import grammar

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.e2e
def test_5000_requests_that_nobody_means_harm_nobody():
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--requests=5000", "--seed=5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "500 of the router's own: 0, wrong 0, leaks 0"
    statuses = done.stdout.splitlines()[1]
    for status in ("200", "400", "404", "405", "415", "422"):
        assert f"{status}: " in statuses, "the requests do not reach everything any more"


def test_a_seed_gives_the_same_bytes_again():
    made = [grammar.pieces_of(random.Random(seed)) for seed in range(200)]
    assert made == [grammar.pieces_of(random.Random(seed)) for seed in range(200)]
    assert len({b"".join(pieces) for pieces in made}) > 190


def test_pieces_are_the_whole_in_order():
    for seed in range(200):
        rng = random.Random(seed)
        data = rng.randbytes(rng.randint(0, 500))
        pieces = grammar.split(rng, data)
        assert b"".join(pieces) == data
        assert all(pieces) or not data


def test_good_calls_are_good():
    for seed in range(50):
        head, _, body = grammar.good(random.Random(seed)).partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert json.loads(body)
