"""`python -m launcher.by_index PROGRAM ...`: becomes the program, its GPUs as numbers.

vLLM and Aphrodite read CUDA_VISIBLE_DEVICES as numbers and fail on a UUID, but only a UUID names
the same GPU tomorrow. So the UUIDs are looked up when the engine starts, by `nvidia-smi`, which
counts as CUDA does in bus order. A MIG slice has no number of its own and is refused. Imports
nothing but the standard library; the process stays the same, and with it pid and signals.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

REFUSED = "gpu-fleet: this engine cannot be shown"
LOST = "gpu-fleet: this machine has no GPU"

_VARIABLE = "CUDA_VISIBLE_DEVICES"
_QUERY = ("nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader")
_TIMEOUT_S = 60.0


def main(argv: Sequence[str]) -> str:
    """Replaces this process. Comes back only to say why it cannot."""
    devices = os.environ.get(_VARIABLE, "").split(",")
    try:
        numbers = indexes(devices, _listing())
        os.execvpe(argv[0], list(argv), {**os.environ, _VARIABLE: ",".join(numbers)})
    except LookupError as exc:
        return str(exc.args[0])
    except OSError as exc:
        return f"cannot start {argv[0]}: {exc.strerror}"


def indexes(devices: Sequence[str], listing: str) -> list[str]:
    """Numbers of UUIDs, by nvidia-smi's `index, uuid` lines; numbers stay as they are.

    Raises LookupError, which begins with one of the two phrases above.
    """
    lines = (line.partition(",") for line in listing.splitlines())
    number_of = {uuid.strip(): number.strip() for number, _, uuid in lines}
    for device in devices:
        if device.startswith("MIG-"):
            raise LookupError(
                f"{REFUSED} the MIG slice {device}: as a process it takes whole GPUs only; use "
                "`runtime: docker`"
            )
        if not device.isdecimal() and device not in number_of:
            raise LookupError(f"{LOST} {device or 'of no name'}; see `nvidia-smi -L`")
    return [number_of.get(device, device) for device in devices]


def _listing() -> str:
    command = " ".join(_QUERY)
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as exc:
        raise LookupError(f"{LOST} that can be asked for: `{command}`: {exc}") from exc
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()
        raise LookupError(f"{LOST} that can be asked for: `{command}` says: {said}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
