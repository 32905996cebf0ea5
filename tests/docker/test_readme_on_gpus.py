"""The README's commands for machines with GPUs, as they stand there, in their order."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^## On your GPUs\n.*?^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_doctor_plan_up_status_and_down_run_as_shown(fleets):
    found = BLOCK.search((ROOT / "README.md").read_text())
    assert found is not None
    commands = found[1].replace(".venv/bin/launcher", f"{sys.executable} -m launcher").splitlines()
    verbs = [command.split(" -m launcher ")[1].split()[0] for command in commands]
    assert verbs == ["doctor", "plan", "up", "status", "down"]
    said = {}
    with fleets() as fleet:
        fleet.use(ROOT / "configs" / "tgi.yaml")
        for verb, command in zip(verbs, commands, strict=True):
            done = subprocess.run(
                ["bash", "-ec", command],
                cwd=ROOT,
                env=fleet.env,
                capture_output=True,
                text=True,
                timeout=90,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            said[verb] = done.stdout
        assert fleet.containers == []
    assert ", 0 failed" in said["doctor"]
    assert re.search(r"^pass +gpu access ", said["doctor"], re.MULTILINE)
    assert "fits, with room for" in said["plan"]
    assert "4 of 4 replicas ready" in said["up"]
    assert said["status"].count(" ready ") == 4
    assert "nothing of it runs" in said["down"]
