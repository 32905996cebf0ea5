"""Ends that are no clean ones: a leader thread that is gone, a child that cannot be reaped yet."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launcher import exits, processes

# The first thread exits by itself (syscall 60 is `exit`, not `exit_group`); the second lives on.
HEADLESS = """
import ctypes, threading, time
threading.Thread(target=lambda: time.sleep(60)).start()
print("up", flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""


@pytest.fixture
def headless():
    """A process whose first thread is a zombie while another one runs."""
    child = subprocess.Popen([sys.executable, "-c", HEADLESS], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    identity = processes.identify_child(child.pid)
    deadline_s = time.monotonic() + 10
    while processes.state_letter(identity) != "Z":
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    yield identity
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_process_without_its_first_thread_still_runs(headless) -> None:
    """It may be stuck in a driver: taken for ended, its GPU would be given to the next."""
    assert processes.is_running(headless)
    assert processes.identify(headless.pid) == headless


async def test_it_has_ended_once_all_its_threads_have(headless) -> None:
    assert not await exits.has_ended(headless, 0.05)
    assert processes.send_signal(headless, signal.SIGKILL)
    assert await exits.has_ended(headless, 10)
    assert not processes.is_running(headless)


def test_a_child_that_does_not_end_holds_nobody_up(monkeypatch) -> None:
    """As one whose thread is stuck in the kernel: SIGKILL is pending and nothing can be reaped."""
    child = subprocess.Popen(["sleep", "60"])
    identity = processes.identify_child(child.pid)
    children = exits.Children()
    children.add(identity, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda *_: None)
        patch.setattr(exits, "signal_all", lambda *_: None)
        began_s = time.monotonic()
        assert "stuck" in children.exit_of(identity).detail
        assert time.monotonic() - began_s < 5
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert children.exit_of(identity).signal == signal.SIGKILL  # told once it can be
    child.returncode = -signal.SIGKILL  # collected above
