"""How a container ended, from what the engine says of it."""

import pytest

from launcher.docker.endings import ending_of
from launcher.exits import Exit

OOM = "out of memory (its limit, or the host's)"


def state(status="exited", **fields):
    return {"Status": status, "Running": status == "running", "ExitCode": 0, "Error": "", **fields}


@pytest.mark.parametrize(
    ("found", "memory_ran_out", "expected"),
    [
        (state("running"), False, None),
        (state("paused", Running=True, Paused=True), False, None),
        (state("restarting", Restarting=True), False, None),
        (state(), False, Exit(0, detail="exited with code 0")),
        (state(ExitCode=3), True, Exit(3, detail="exited with code 3")),
        (state(ExitCode=137), False, Exit(signal=9, detail="killed by SIGKILL")),
        (state(ExitCode=139), True, Exit(signal=11, detail="killed by SIGSEGV")),
        (state(ExitCode=143), False, Exit(signal=15, detail="killed by SIGTERM")),
        (
            state(ExitCode=137, OOMKilled=True),
            False,
            Exit(None, 9, True, f"exited with code 137: {OOM}"),
        ),
        (state(ExitCode=137), True, Exit(None, 9, True, f"exited with code 137: {OOM}")),
        # A shard was killed, and the launcher above it gave up.
        (
            state(ExitCode=1, OOMKilled=True),
            False,
            Exit(1, None, True, f"exited with code 1: {OOM}"),
        ),
        (
            state(ExitCode=127),
            False,
            Exit(127, detail="exited with code 127: a program was not found"),
        ),
        (state(ExitCode=255), False, Exit(255, detail="exited with code 255")),
        (
            state("dead", ExitCode=128, Error="device error"),
            False,
            Exit(128, detail="exited with code 128: device error"),
        ),
        (
            state("created", ExitCode=128, Error="no such device"),
            False,
            Exit(detail="its container never started: no such device"),
        ),
    ],
)
def test_how_it_ended(found, memory_ran_out, expected):
    assert ending_of(found, memory_ran_out=memory_ran_out) == expected
