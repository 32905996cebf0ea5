"""The state folder: one launcher at a time, whole files or none, broken ones counted as absent."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.processes import identify
from launcher.state import ClusterLock, StateFolder
from router.errors import StateError

HOLD = """
import sys
from pathlib import Path
from launcher.state import ClusterLock, StateFolder
ClusterLock(StateFolder(Path(sys.argv[1]))).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_launcher(folder: StateFolder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_launcher_is_refused_and_told_the_firsts_pid(folder, other_launcher) -> None:
    with (
        pytest.raises(StateError, match=f"launcher pid {other_launcher.pid}"),
        ClusterLock(folder),
    ):
        pass
    holder = folder.holder()
    assert holder is not None
    assert holder.pid == other_launcher.pid


def test_a_killed_launchers_lock_is_free_and_its_word_worthless(folder, other_launcher) -> None:
    other_launcher.kill()
    other_launcher.wait()
    assert folder.holder() is None
    with ClusterLock(folder):
        assert folder.holder() == identify(os.getpid())
    assert folder.holder() is None


def test_waiting_for_the_lock_gets_it_once_it_is_free(folder, other_launcher) -> None:
    other_launcher.kill()
    with ClusterLock(folder, wait_s=10.0):
        assert folder.holder() is not None


def test_a_folder_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    StateFolder(tmp_path).create()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_records_are_private_and_come_back(folder) -> None:
    folder.write_record("r.json", {"a": 1})
    assert folder.read_record("r.json") == {"version": 1, "a": 1}
    assert stat.S_IMODE((folder.path / "r.json").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"a": 1}', '{"version": 0, "a": 1}', "\xff\x00"]
)
def test_a_broken_or_foreign_record_is_absent(folder, content: str) -> None:
    (folder.path / "r.json").write_text(content, encoding="latin-1")
    assert folder.read_record("r.json") is None


def test_a_full_disk_leaves_the_old_record_whole(folder, monkeypatch) -> None:
    folder.write_record("r.json", {"a": 1})

    def no_space(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StateError, match="No space left on device"):
        folder.write_record("r.json", {"a": 2})
    assert folder.read_record("r.json") == {"version": 1, "a": 1}
    assert [p.name for p in folder.path.iterdir() if p.name.startswith(".")] == []


def test_a_path_too_long_for_a_socket_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"runtime\.state_dir"):
        StateFolder(tmp_path / ("x" * 100)).create()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot make the state folder"):
        StateFolder(tmp_path / "file/state").create()


def test_a_nearly_full_disk_is_refused_with_what_is_needed(folder, monkeypatch) -> None:
    folder.require_space()
    real = os.statvfs(folder.path)
    values = list(real)
    values[4] = 2 * 1024**2 // real.f_frsize  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    with pytest.raises(StateError, match=r"found 2048 KiB of free disk, expected at least 16 MiB"):
        folder.require_space()


def test_a_stopping_command_takes_the_lock_without_writing(folder) -> None:
    with ClusterLock(folder, is_launcher=False):
        assert folder.holder() is None
        with pytest.raises(StateError, match="another launcher"), ClusterLock(folder):
            pass


def test_a_forgotten_run_leaves_logs_and_the_lock(folder) -> None:
    folder.create()
    kept = {folder.path / "lock", folder.log("replica-0"), folder.config_copy}
    gone = {folder.path / name for name in ("status.json", "replicas.json", "replicas/a.json")}
    for path in (*kept, *gone, folder.admin_socket):
        path.write_text("x")
    folder.forget_run()
    assert {path for path in folder.path.rglob("*") if path.is_file()} == kept
    folder.forget_run()  # nothing to forget is fine
