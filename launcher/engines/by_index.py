"""`python -m launcher.engines.by_index PROGRAM ...`: becomes the program, its GPUs as numbers.

vLLM and Aphrodite read CUDA_VISIBLE_DEVICES as numbers and fail on a UUID, but only a UUID names
the same GPU tomorrow. So the UUIDs are looked up when the engine starts, by `nvidia-smi`, which
counts as CUDA does in bus order. A MIG slice has no number of its own and is refused. Uses nothing
but the standard library; the process stays the same, so that its pid and signals do.
"""

import os
import subprocess
import sys

_VARIABLE = "CUDA_VISIBLE_DEVICES"
_QUERY = ("nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader")
_TIMEOUT_S = 60.0


def main(argv: list[str]) -> str:
    """Replaces this process. Comes back only to say why it cannot."""
    devices = os.environ.get(_VARIABLE, "").split(",")
    try:
        listing = subprocess.run(
            _QUERY, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        ).stdout
        numbers = indexes(devices, listing)
        os.execvpe(argv[0], argv, {**os.environ, _VARIABLE: ",".join(numbers)})
    except LookupError as exc:
        return f"error: argument --devices: {exc.args[0]}"
    except subprocess.SubprocessError as exc:
        return f"Failed to initialize NVML: `{' '.join(_QUERY)}` failed: {exc}"
    except OSError as exc:
        return f"cannot start {exc.filename or argv[0]}: {exc.strerror}"


def indexes(devices: list[str], listing: str) -> list[str]:
    """Numbers of UUIDs, by nvidia-smi's `index, uuid` lines; numbers stay as they are."""
    lines = (line.partition(",") for line in listing.splitlines())
    number_of = {uuid.strip(): number.strip() for number, _, uuid in lines}
    for device in devices:
        if device.startswith("MIG-"):
            raise LookupError(
                f"{device} is a MIG slice, and this engine takes whole GPUs only when it runs as "
                "a process: use `runtime: docker`"
            )
        if not device.isdecimal() and device not in number_of:
            raise LookupError(f"this machine has no GPU {device}; see `nvidia-smi -L`")
    return [number_of.get(device, device) for device in devices]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
