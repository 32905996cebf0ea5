"""Images for a private engine, made without a registry from what this machine has.

Each function gives the tag, once the engine has that image with the content of now; calling it
again costs a question. The engines inside: the simulator, TGI's command line before it,
llama-server, and programs that end badly. Used by `tests/docker`; knows no product code but the
simulator's place.
"""

import compileall
import hashlib
import importlib.metadata
import io
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LABEL = "gpu-fleet-tests.content"
TGI_TAG = "ghcr.io/huggingface/text-generation-inference:3.3.5"
LLAMA_TAG = "ghcr.io/ggml-org/llama.cpp:server-cuda"
PYTHON = os.path.realpath(sys._base_executable)
"""The interpreter below any venv; it has the same path in the images."""
PACKAGES_OF_SIMULATOR = """
import sys, sysconfig, launcher.simulator.cli
site = sysconfig.get_path("purelib")
for name, module in list(sys.modules.items()):
    place = getattr(module, "__file__", None) or ""
    if "." not in name and place.startswith(site):
        print(place.removesuffix("/__init__.py"))
"""
UNUSED = re.compile(
    r"(.*/)?(tests?|idlelib|tkinter|turtledemo|lib2to3|ensurepip|pydoc_data|site-packages"
    r"|dist-packages|config-[^/]*|__editable__.*|_test[^/]*\.so|_tkinter[^/]*\.so"
    r"|xxlimited[^/]*\.so|[^/]*\.opt-[12]\.pyc|[^/]*\.(a|c|h|pyx|pxd))"
)


def simulator_image(engine, tag: str = "localhost:1/gpu-fleet/simulator:test") -> str:
    """The simulator as it is in this checkout, on port 80 of all addresses."""
    shim = "from launcher.simulator.cli import main\n\nraise SystemExit(main())\n"
    start = [PYTHON, "/usr/local/bin/simulator", "--host=0.0.0.0"]
    return _simulator_image(engine, tag, "simulator", shim, start, {})


def tgi_image(engine, tag: str = TGI_TAG) -> str:
    """TGI of the version in the tag, as far as a command line and a wire can tell."""
    found = re.fullmatch(r".*:(\d+\.\d+\.\d+)[^:]*", tag)
    env = {"TGI_VERSION": found[1]} if found else {}
    name = "text-generation-launcher"
    return _simulator_image(engine, tag, name, (HERE / "tgi_shim.py").read_text(), [name], env)


def llama_image(engine, program: Path, tag: str = LLAMA_TAG) -> str:
    """llama.cpp's own layout, with the server of `llama_server`; models are mounted by tests."""
    content = _Content()
    content.add(program, "/app/llama-server")
    content.add_libraries([program])
    start = ['ENTRYPOINT ["/app/llama-server"]', "ENV LLAMA_ARG_HOST=0.0.0.0", "WORKDIR /app"]
    return _imported(engine, tag, content, start)


def crash_image(engine, tag: str, exit_code: int, message: str) -> str:
    """Says something on standard error and ends, whatever its arguments are."""
    return _shell_image(engine, tag, f"cat /message >&2; exit {exit_code}", message)


def oom_image(engine, tag: str = "localhost:1/gpu-fleet/oom:test", message: str = "loading") -> str:
    """Takes memory until it is killed: give it a limit.

    Like a server, it dies of a child's death, a moment later. An engine that hears of the end
    before it hears of the shortage says 137 and nothing of memory.
    """
    script = "cat /message; (x=xxxx; while :; do x=$x$x; done); code=$?; sleep 0.2; exit $code"
    return _shell_image(engine, tag, script, message)


def program_image(engine, tag: str, name: str, script: str) -> str:
    """Has a program of that name on its PATH, which is this shell script."""
    content = _Content()
    _add_programs(content, "sh", "cat", "sleep")
    content.add_text(f"/usr/local/bin/{name}", f"#!/bin/sh\n{script}\n", 0o755)
    return _imported(engine, tag, content, [f"ENTRYPOINT {json.dumps([name])}"])


def _shell_image(engine, tag: str, script: str, message: str) -> str:
    content = _Content()
    _add_programs(content, "sh", "cat", "sleep")
    content.add_text("/message", f"{message}\n", 0o644)
    start = f"ENTRYPOINT {json.dumps(['/bin/sh', '-c', script, 'sh'])}"
    return _imported(engine, tag, content, [start])


# ---- images with Python ----


def _simulator_image(
    engine, tag: str, name: str, shim: str, start: list[str], env: dict[str, str]
) -> str:
    """A layer of this checkout's code and a program, upon one with Python and what it imports."""
    content = _Content()
    with tempfile.TemporaryDirectory() as stage:
        for package in ("launcher", "router"):
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, Path(stage) / package, ignore=skip)
        # Read-only containers and other users cannot compile at every start what we can now.
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(stage, quiet=2, stripdir=stage, invalidation_mode=unchecked)
        content.add_tree(Path(stage), "app")
    content.add_text(f"program/{name}", f"#!{PYTHON}\n{shim}", 0o755)
    settings = {"PYTHONPATH": "/app:/packages", "PYTHONDONTWRITEBYTECODE": "1", "PORT": "80"}
    lines = [
        f"FROM {_python_image(engine)}",
        "ENV " + " ".join(f"{key}={value}" for key, value in (settings | env).items()),
        "COPY app /app",
        "COPY program /usr/local/bin",
        f"ENTRYPOINT {json.dumps(start)}",
    ]
    return _built(engine, tag, content, lines)


def _python_image(engine) -> str:
    """This interpreter, the standard library and the packages that the simulator imports."""
    tag = "localhost:1/gpu-fleet/python:test"
    versions = sorted(f"{one.name}={one.version}" for one in importlib.metadata.distributions())
    key = _digest([sys.version, PYTHON, *versions])
    if _has(engine, tag, key):
        return tag
    content = _Content()
    for place in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        content.add_tree(_base(place), str(_base(place)))
    script = [sys.executable, "-c", PACKAGES_OF_SIMULATOR]
    for line in subprocess.check_output(script, cwd=ROOT, text=True).splitlines():
        content.add_tree(Path(line), f"/packages/{Path(line).name}")
    content.add(Path(PYTHON), PYTHON)
    extensions = [path for path in content.sources if path.suffix == ".so"]
    content.add_libraries([Path(PYTHON), *extensions])
    _add_programs(content, "sh", "sleep", "cat", "env", "ls")
    return _imported(engine, tag, content, [], key)


def _base(place: str) -> Path:
    """The standard library's place, which a venv shares with its base."""
    return Path(place.replace(sys.prefix, sys.base_prefix, 1))


def _add_programs(content: "_Content", *names: str) -> None:
    for name in names:
        program = Path(os.path.realpath(shutil.which(name) or name))
        content.add(program, f"/bin/{name}")
        content.add_libraries([program])
    content.add_text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644)
    content.add_folder("/tmp", 0o1777)


# ---- what goes into an image ----


class _Content:
    """A tar archive in the making; the same path goes in once."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._bytes, mode="w")  # noqa: SIM115  # closed by `bytes`
        self._digest = hashlib.sha256()
        self._names: set[str] = set()
        self.sources: list[Path] = []

    def add(self, source: Path, name: str) -> None:
        """A file; what a link points to."""
        name = name.lstrip("/")
        if name in self._names:
            return
        self._names.add(name)
        self.sources.append(source)
        data = source.read_bytes()
        info = self._tar.gettarinfo(str(source.resolve()), name)
        info.type, info.linkname, info.size = tarfile.REGTYPE, "", len(data)
        self._write(info, data)

    def add_text(self, name: str, text: str, mode: int) -> None:
        info = tarfile.TarInfo(name.lstrip("/"))
        info.size, info.mode = len(text.encode()), mode
        if info.name not in self._names:
            self._names.add(info.name)
            self._write(info, text.encode())

    def add_folder(self, name: str, mode: int) -> None:
        info = tarfile.TarInfo(name.lstrip("/"))
        info.type, info.mode = tarfile.DIRTYPE, mode
        self._write(info, b"")

    def add_tree(self, source: Path, name: str) -> None:
        if source.is_file():
            self.add(source, name)
        for folder, inner, files in os.walk(source):
            inner[:] = sorted(one for one in inner if not UNUSED.fullmatch(one))
            for one in sorted(files):
                path = Path(folder) / one
                if path.exists() and not UNUSED.fullmatch(one):
                    self.add(path, f"{name}/{path.relative_to(source)}")

    def add_libraries(self, programs: Iterable[Path]) -> None:
        """All that the loader would load for them, where it looks for it, and the loader."""
        listed = subprocess.run(
            ["ldd", *map(str, programs)], capture_output=True, text=True, check=True
        )
        for path in sorted(set(re.findall(r"(?:=> |\t)(/\S+) \(0x", listed.stdout))):
            self.add(Path(path), os.path.normpath(path))

    def bytes(self) -> bytes:
        self._tar.close()
        return self._bytes.getvalue()

    def key(self) -> str:
        return self._digest.hexdigest()

    def _write(self, info: tarfile.TarInfo, data: bytes) -> None:
        self._digest.update(f"{info.name} {info.mode:o} {len(data)}\n".encode() + data)
        self._tar.addfile(info, io.BytesIO(data))


# ---- the engine's side ----


def _has(engine, tag: str, key: str) -> bool:
    import docker.errors  # slow to import

    with closing(engine.client()) as client:
        try:
            return client.images.get(tag).labels.get(LABEL) == key
        except docker.errors.ImageNotFound:
            return False


def _imported(engine, tag: str, content: _Content, changes: list[str], key: str = "") -> str:
    key = key or _digest([content.key(), *changes])
    if not _has(engine, tag, key):
        repository, _, name = tag.rpartition(":")
        changes = [*changes, f"LABEL {LABEL}={key}"]
        with closing(engine.client()) as client:
            client.api.import_image_from_data(content.bytes(), repository, name, changes)
    assert _has(engine, tag, key), f"{tag} was not imported:\n{engine.log[-2000:]}"
    return tag


def _built(engine, tag: str, content: _Content, lines: list[str]) -> str:
    key = _digest([content.key(), *lines])
    if not _has(engine, tag, key):
        content.add_text("Dockerfile", "\n".join([*lines, f"LABEL {LABEL}={key}"]), 0o644)
        context = io.BytesIO(content.bytes())
        with closing(engine.client()) as client:
            client.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)
    return tag


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
