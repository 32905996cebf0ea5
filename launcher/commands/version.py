"""`launcher version`: what is installed. Prints and returns an exit code."""

import platform
from importlib.metadata import PackageNotFoundError, version


def run() -> int:
    print(f"gpu-fleet {installed_version()} (Python {platform.python_version()})")
    return 0


def installed_version() -> str:
    """The distribution's version; a checkout that was never installed has none."""
    try:
        return version("gpu-fleet")
    except PackageNotFoundError:
        return "not installed"
