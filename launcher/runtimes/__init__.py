"""What can start replicas; a new runtime is one file here and one line in `RUNTIMES`."""

from launcher.runtimes.base import Exit, Handle, Runtime
from launcher.runtimes.process import ProcessRuntime

RUNTIMES = {"process": ProcessRuntime}

__all__ = ["RUNTIMES", "Exit", "Handle", "ProcessRuntime", "Runtime"]
