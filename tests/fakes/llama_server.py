"""llama.cpp's llama-server, built once per machine from the sdist that carries its source.

The only engine that runs without a GPU, a model hub and a registry; `images.llama_image` puts it
into an image. Building takes minutes: CI starts ``python -m tests.fakes.llama_server``, which
prints the path, before anything else, and whoever asks meanwhile waits for that build. Imports
nothing beyond the standard library, as nothing else is installed by then.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = "0.3.36"
SDIST = f"llama_cpp_python-{VERSION}"
NEEDED_PROGRAMS = ("gcc", "g++", "cmake", "make")
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_BUILD_WEBUI=OFF",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_CURL=OFF",
)


class BuildError(Exception):
    """llama-server could not be built here; the message quotes the end of the build's log."""


def llama_server() -> Path:
    """The program; built now unless it was before. One build at a time on this machine."""
    home = cache_dir() / f"llama-server-{VERSION}"
    program = home / "llama-server"
    if program.exists():
        return program
    with _locked(home.with_name(f"{home.name}.lock")):
        if not program.exists():
            _build_into(home)
    return program


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpu-fleet-tests"


def missing_programs() -> list[str]:
    """What the build needs and this machine lacks; nothing once it was built."""
    if (cache_dir() / f"llama-server-{VERSION}" / "llama-server").exists():
        return []
    return [name for name in NEEDED_PROGRAMS if shutil.which(name) is None]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_into(home: Path) -> None:
    """Appears at ``home`` all at once; what an interrupted build left is swept first."""
    work = home.with_name(f"{home.name}.build")
    shutil.rmtree(work, ignore_errors=True)
    (work / "bin").mkdir(parents=True)
    with home.with_name(f"{home.name}.log").open("w+b") as log:
        source = _source(work, log)
        _run(log, "cmake", "-S", source, "-B", work / "cmake", *CMAKE_FLAGS)
        _run(log, "cmake", "--build", work / "cmake", "--target", "llama-server", "-j2")
    shutil.copy2(work / "cmake" / "bin" / "llama-server", work / "bin")
    (work / "bin").rename(home)
    shutil.rmtree(work)


def _source(work: Path, log) -> Path:
    """llama.cpp's source tree. pip gets a venv of its own: a bare Debian's Python has no pip,
    and the project's venv may just be being made."""
    _run(log, sys.executable, "-m", "venv", work / "venv")
    pip = work / "venv" / "bin" / "pip"
    only_source = ("--no-deps", "--no-binary", "llama-cpp-python")
    _run(log, pip, "download", "-q", *only_source, "-d", work, f"llama-cpp-python=={VERSION}")
    source = f"{SDIST}/vendor/llama.cpp"
    _run(log, "tar", "-xzf", work / f"{SDIST}.tar.gz", "-C", work, source)
    return work / source


def _run(log, *command: object) -> None:
    argv = [str(word) for word in command]
    if subprocess.run(argv, stdout=log, stderr=subprocess.STDOUT).returncode == 0:
        return
    log.seek(0)
    tail = log.read().decode(errors="replace")[-2000:]
    raise BuildError(f"{' '.join(argv[:3])} failed while building llama-server:\n{tail}")


if __name__ == "__main__":
    print(llama_server())
