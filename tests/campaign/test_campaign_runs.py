"""The campaign as a command, short: real processes, real faults, and books in order after it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
MODELS = ["text", "bpe"]


def campaign(*args):
    return subprocess.run(
        [sys.executable, "-m", "tests.campaign", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.timeout(220)
@pytest.mark.parametrize("model", MODELS)
def test_half_a_minute_of_faults_loses_no_call_and_leaks_nothing(tmp_path, model):
    file = tmp_path / "report.json"
    done = campaign(
        "--minutes=0.5", f"--seed={5 + MODELS.index(model)}", f"--token-model={model}",
        "--clients=16", f"--json={file}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "lost 0, errors without need 0, not resumed 0, leaks 0"
    report = json.loads(file.read_text())
    assert report["calls"]["right"] > 100
    assert sum(report["faults"].values()) >= 8


def test_a_seed_can_be_looked_at_before_it_runs():
    one, other = (campaign("--plan", "--seed=7", "--minutes=1") for _ in range(2))
    assert one.returncode == 0
    assert one.stdout == other.stdout
    assert one.stdout.count("\n") > 20


@pytest.mark.parametrize("wrong", ["--replicas=1", "--clients=0", "--minutes=0"])
def test_a_campaign_that_could_prove_nothing_is_refused(wrong):
    assert campaign(wrong).returncode == 2
