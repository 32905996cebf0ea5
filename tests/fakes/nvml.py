"""The NVIDIA management library without a GPU: our own C (`nvml/nvml.c`), the real pynvml above it.

A `FakeNvml` is a text file of GPUs that the library reads again at every call, so a test changes
them live. For child processes there is `env`; in this process `loaded` puts the library in place.
"""

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

GIB = 2**30
XID, DOUBLE_BIT_ECC = 0x8, 0x2
LOST, RESET_REQUIRED = 15, 16

_SOURCE = Path(__file__).parent / "nvml" / "nvml.c"
_LIBRARY = "libnvidia-ml.so.1"
_BUILD = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{_LIBRARY}"]


@functools.cache
def library_folder() -> Path:
    """Where the library is, built once per test session. Skips the test where there is no gcc."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        reason = "needs a C compiler for the fake NVML library: apt-get install gcc libc6-dev"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="fake-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run([compiler, *_BUILD, "-o", folder / _LIBRARY, _SOURCE], check=True)
    return folder


@dataclass
class FakeGpu:
    """A GPU, or with `parent` a MIG slice of one. None: this one has no such thing."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    pci: str | None = None
    cc: tuple[int, int] | None = (9, 0)
    total: int | None = 80 * GIB
    used: int = 0
    reserved: int = GIB // 2
    util: int | None = 0
    temp: int | None = 31
    power: int | None = 70_000
    limit: int | None = 700_000
    throttle: int | None = 1
    ecc: int | None = 0
    mig: int | None = 0
    persistence: int | None = 1
    remap: tuple[int, int] | None = (0, 0)
    instance: tuple[int, int] | None = None
    parent: str | None = None
    processes: dict[int, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    hangs: str | None = None

    def lines(self) -> Iterator[str]:
        yield f"{'slice' if self.parent else 'gpu'} {self.uuid}"
        for key in _KEYS:
            value = getattr(self, key)
            if isinstance(value, tuple):
                value = f"{value[0]} {value[1]}"
            if value is not None:
                yield f"{key} {value}"
        yield from (f"process {pid} {used}" for pid, used in self.processes.items())
        yield from (f"error {function} {code}" for function, code in self.errors.items())
        if self.hangs:
            yield f"hang {self.hangs}"


_KEYS = (
    *("name", "pci", "cc", "total", "used", "reserved", "util", "temp", "power", "limit"),
    *("throttle", "ecc", "mig", "persistence", "remap", "instance"),
)
# What a MIG slice does not tell: it is told of the whole GPU.
_NOT_OF_SLICES: dict[str, Any] = {
    key: None
    for key in (
        *("cc", "util", "temp", "power", "limit", "throttle", "ecc", "mig", "persistence", "remap"),
    )
}


class FakeNvml:
    """The GPUs of a make-believe machine. Every method takes effect at the library's next call."""

    def __init__(self, folder: Path) -> None:
        self.library_folder = library_folder()
        self.file = folder / "fake-nvml.txt"
        self.gpus: list[FakeGpu] = []
        self._head = {"init": "0", "driver": "560.35.03", "cuda": "12060"}
        self._events: list[str] = []
        self._write()

    @property
    def env(self) -> dict[str, str]:
        """What a child process needs to see these GPUs; to be set before it starts."""
        return {"LD_LIBRARY_PATH": str(self.library_folder), "FAKE_NVML_FILE": str(self.file)}

    @contextmanager
    def loaded(self) -> Iterator["FakeNvml"]:
        """This process's pynvml uses the fake, too, whatever it had loaded before."""
        import pynvml

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FAKE_NVML_FILE", str(self.file))
            patch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(self.library_folder / _LIBRARY)))
            patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
            yield self

    def add_gpu(self, uuid: str | None = None, **fields: Any) -> FakeGpu:
        number = sum(gpu.parent is None for gpu in self.gpus)
        uuid = uuid or f"GPU-{number:08x}-1111-2222-3333-444444444444"
        fields.setdefault("pci", f"00000000:{0x1A + number:02X}:00.0")
        self.gpus.append(FakeGpu(uuid, **fields))
        self._write()
        return self.gpus[-1]

    def add_slice(self, parent: FakeGpu, profile: str = "1g.10gb", **fields: Any) -> FakeGpu:
        """One more MIG slice; the GPU has MIG switched on from then on."""
        parent.mig, parent.util = 1, None
        place = sum(gpu.parent == parent.uuid for gpu in self.gpus)
        known: dict[str, Any] = {
            "uuid": f"MIG-{place:08x}-{parent.uuid[8:12]}-2222-3333-444444444444",
            "name": f"{parent.name} MIG {profile}",
            "total": 10 * GIB,
            "reserved": 0,
            "instance": (7 + place, 0),
            **_NOT_OF_SLICES,
        }
        part = FakeGpu(parent=parent.uuid, **(known | fields))
        self.gpus.insert(self.gpus.index(parent) + 1 + place, part)
        self._write()
        return part

    def change(self, gpu: FakeGpu, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(gpu, name, value)
        self._write()

    def add_process(self, gpu: FakeGpu, pid: int, used: int = GIB) -> None:
        gpu.processes[pid] = used
        gpu.used += used
        self._write()

    def fail(self, gpu: FakeGpu, function: str, code: int) -> None:
        """From now on this call for this GPU answers `code`."""
        gpu.errors[function] = code
        self._write()

    def lose(self, gpu: FakeGpu) -> None:
        """It falls off the bus."""
        self.fail(gpu, "*", LOST)

    def bring_back(self, gpu: FakeGpu) -> None:
        gpu.errors.clear()
        self._write()

    def fail_init(self, code: int) -> None:
        """The whole driver refuses; 9: no kernel module, 18: updated without a reboot, 999."""
        self._head["init"] = str(code)
        self._write()

    def inject_event(self, gpu: FakeGpu, kind: int, data: int = 0) -> None:
        """Delivered once, to those who were waiting or will wait with an open event set."""
        self._events.append(f"event {gpu.uuid} {kind} {data}")
        self._write()

    def inject_xid(self, gpu: FakeGpu, code: int) -> None:
        self.inject_event(gpu, XID, code)

    def _write(self) -> None:
        lines = [f"{key} {value}" for key, value in self._head.items()]
        for gpu in self.gpus:
            lines += gpu.lines()
        new = self.file.with_suffix(".new")
        new.write_text("\n".join([*lines, *self._events]) + "\n")
        new.replace(self.file)  # a reader never sees half of it
