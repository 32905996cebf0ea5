"""What can start replicas; a new runtime is one file here and one line in `RUNTIMES`."""

from launcher.runtimes.base import Exit, Handle, Runtime
from launcher.runtimes.docker import DockerRuntime
from launcher.runtimes.process import ProcessRuntime

RUNTIMES: dict[str, type[Runtime]] = {"process": ProcessRuntime, "docker": DockerRuntime}

__all__ = ["RUNTIMES", "DockerRuntime", "Exit", "Handle", "ProcessRuntime", "Runtime"]
