"""The product's own image, built from this checkout where no registry and no index is reached.

The base image is this machine's Python with what a Dockerfile needs of a Debian: a shell and a few
programs. The wheels are downloaded outside, once per set of dependencies, and the build has no
network. Used by `tests/docker`.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE_TAG = "localhost:1/gpu-fleet/python-base:test"
PRODUCT_TAG = "localhost:1/gpu-fleet/product:test"
PYTHON = Path(os.path.realpath(sys._base_executable))
PROGRAMS = ("sh", "ls", "cat", "id", "mkdir", "chmod", "chown", "rm", "env", "sleep")
SENT = ("launcher", "router", "configs", "pyproject.toml", "README.md", "LICENSE")
MANYLINUX = ("rt", "pthread", "dl", "util", "m", "gcc_s", "stdc++", "resolv")
"""Libraries that a wheel may expect of any Linux (PEP 600), whether they are loaded here or not."""
DOWNLOAD_S = 300


def product_image(client, tag: str = PRODUCT_TAG) -> str:
    """Built by the engine of `client` (Docker's SDK), or taken from its cache of layers."""
    base = python_base(client)
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        stage(context)
        shutil.copytree(wheels(), context / "wheels")
        client.images.build(
            path=str(context),
            buildargs={"BASE_IMAGE": base},
            network_mode="none",
            tag=tag,
            rm=True,
            forcerm=True,
        )
    return tag


def stage(context: Path) -> None:
    """A checkout as a user has it: with files beside the product that no image should get."""
    for name in (*SENT, "Dockerfile", ".dockerignore"):
        source = ROOT / name
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, context / name, ignore=skip)
        else:
            shutil.copy2(source, context / name)
    (context / ".env").write_text("HF_TOKEN=secret\n")
    (context / "launcher" / "__pycache__").mkdir()
    (context / "launcher" / "__pycache__" / "stale.pyc").touch()


def wheels() -> Path:
    """A folder with every wheel the product needs, and what builds the product's own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    key = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "gpu-fleet-tests" / f"wheels-{key}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        pip = [sys.executable, "-m", "pip", "download", "-qqq", "--only-binary=:all:", "-d", made]
        subprocess.run([*pip, *wanted], check=True, timeout=DOWNLOAD_S)
        Path(made).chmod(0o755)
        shutil.copytree(made, f"{made}.done")
        try:
            Path(f"{made}.done").rename(folder)  # at once: another run may be making it, too
        except OSError:
            shutil.rmtree(f"{made}.done")
    return folder


def python_base(client, tag: str = BASE_TAG) -> str:
    """The interpreter below any venv, its library with `venv` and pip, and a shell."""
    import docker.errors  # slow to import

    key = hashlib.sha256(f"{sys.version} {PYTHON} {PROGRAMS} {MANYLINUX}".encode()).hexdigest()
    try:
        if client.images.get(tag).labels.get("content") == key:
            return tag
    except docker.errors.ImageNotFound:
        pass
    repository, _, name = tag.rpartition(":")
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
            _add_python(tar)
        archive.seek(0)
        path = f"ENV PATH={PYTHON.parent}:/usr/local/bin:/usr/bin:/bin"
        changes = [path, f"LABEL content={key}"]
        client.api.import_image_from_data(archive, repository, name, changes)
    return tag


def _add_python(tar: tarfile.TarFile) -> None:
    programs = [Path(os.path.realpath(shutil.which(name) or name)) for name in PROGRAMS]
    library = Path(sysconfig.get_path("stdlib").replace(sys.prefix, sys.base_prefix, 1))
    extensions = [*library.rglob("lib-dynload/*.so")]
    tar.add(PYTHON, PYTHON)
    tar.add(PYTHON, PYTHON.parent / "python3")
    for name, program in zip(PROGRAMS, programs, strict=True):
        tar.add(program, f"/bin/{name}")
    for path in _libraries([PYTHON, *programs, *extensions]):
        tar.add(path, path)
    # Debian keeps the wheels of `ensurepip` apart.
    for tree in (library, Path("/usr/share/python-wheels")):
        if tree.is_dir():
            tar.add(tree, tree, filter=_wanted)
    etc = tarfile.TarInfo("etc")
    etc.type, etc.mode = tarfile.DIRTYPE, 0o755
    tmp = tarfile.TarInfo("tmp")
    tmp.type, tmp.mode = tarfile.DIRTYPE, 0o1777
    tar.addfile(etc)
    tar.addfile(tmp)


UNUSED = re.compile(r"(tests?|idlelib|tkinter|turtledemo|lib2to3|site-packages|__pycache__)|.*\.a")


def _wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if UNUSED.fullmatch(Path(member.name).name) else member


def _libraries(programs: list[Path]) -> list[str]:
    """All that the loader would load for them, and the loader."""
    listed = subprocess.run(
        ["ldd", *map(str, programs)], capture_output=True, text=True, check=True
    )
    found = {os.path.normpath(p) for p in re.findall(r"(?:=> |\t)(/\S+) \(0x", listed.stdout)}
    beside = {Path(path).parent for path in found}
    found |= {str(p) for d in beside for name in MANYLINUX for p in d.glob(f"lib{name}.so.*[0-9]")}
    return sorted(found)
