"""The benchmarks run to their end and say everything they promise; how fast is nobody's test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.scenarios import SCENARIOS

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
FIGURES = [figure for loads in SCENARIOS.values() for load in loads for figure in load.figures]


def printed(module, *options):
    """Of a benchmark that has run to its end, and well."""
    done = subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One quick run of all scenarios: what it printed and its JSON document."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    said = printed("tests.bench", "--quick", f"--json={file}")
    return said, json.loads(file.read_text())


def test_every_figure_is_printed_and_no_call_was_wrong(finished):
    said, document = finished
    assert said.splitlines()[-1] == "errors: 0"
    for figure in FIGURES:
        row = next(line for line in said.splitlines() if line.startswith(f"{figure.name}  "))
        assert any(char.isdigit() for char in row)
    assert all(run["calls"] + run["events"] > 0 for run in document["runs"])


def test_the_file_has_every_run_and_the_machine(finished):
    _, document = finished
    assert [row["figure"] for row in document["figures"]] == [figure.name for figure in FIGURES]
    assert all(row["router"] is not None for row in document["figures"])
    assert {run["target"] for run in document["runs"]} == {"direct", "relay", "router"}
    assert document["machine"]["cores"] >= 1


def test_the_overload_bench_runs_and_every_call_is_served_or_honestly_refused():
    lines = printed("tests.bench.overload", "--quick").splitlines()
    assert lines[-1] == "errors: 0"
    for scene in ("1x", "2x", "3x", "half full", "3x, one floods"):
        row = next(line for line in lines if line.startswith(f"| {scene} |"))
        assert any(char.isdigit() for char in row.removeprefix(f"| {scene} |"))


def test_the_growth_bench_runs_and_no_call_was_wrong():
    lines = printed("tests.bench.growth", "--quick", "--waiting=200").splitlines()
    assert lines[-1] == "errors: 0"
    for case in ("4 replicas", "64 replicas", "4 replicas, 200 calls waiting"):
        row = next(line for line in lines if line.startswith(f"| {case} |"))
        assert row.endswith("x |")
