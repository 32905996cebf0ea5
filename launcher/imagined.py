"""GPUs that are not in this machine, for `launcher plan --gpu`: by name, or by their memory. Pure.

Memory is what the driver reports for a card, which is less than its box says: drivers and ECC take
their part. Figures are those of common cards' `nvidia-smi` output.
"""

import re

from launcher.gpu import DriverState, Gpu, Inventory
from launcher.sizes import MIB, parse_size_bytes
from router.config.words import did_you_mean
from router.errors import DeviceError

Capability = tuple[int, int]

CARDS: dict[str, tuple[int, Capability]] = {
    "T4": (15_360, (7, 5)),
    "V100-16": (16_384, (7, 0)),
    "V100-32": (32_768, (7, 0)),
    "A10": (23_028, (8, 6)),
    "A10G": (23_028, (8, 6)),
    "L4": (23_034, (8, 9)),
    "RTX3090": (24_576, (8, 6)),
    "RTX4090": (24_564, (8, 9)),
    "L40S": (46_068, (8, 9)),
    "A40": (46_068, (8, 6)),
    "A6000": (49_140, (8, 6)),
    "A100-40": (40_960, (8, 0)),
    "A100-80": (81_920, (8, 0)),
    "H100": (81_559, (9, 0)),
    "H200": (143_771, (9, 0)),
}
"""By name: MiB as the driver reports them, and the compute capability."""

_DEFAULT_COUNT = 16
_DEFAULT_CAPABILITY = (8, 0)
_FORM = re.compile(r"(?:(\d{1,3})\s*[xX*]\s*)?(\S.*)")


def imagined(text: str) -> Inventory:
    """`A100-80`, `4xL4` or `2x24GiB` as an inventory; without a count, as many as are asked for.

    A size alone is taken for an 8.0 card. Raises DeviceError.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None or match[1] == "0":
        raise DeviceError(f"--gpu: found {text!r}, expected a card like 4xL4, or a size like 24GiB")
    name = match[2].strip()
    memory_bytes, capability = _card(name)
    gpus = tuple(
        Gpu(f"GPU-imagined-{n}", n, name, memory_bytes, capability, "", None, None, False)
        for n in range(int(match[1] or _DEFAULT_COUNT))
    )
    return Inventory(DriverState.OK, gpus)


def _card(name: str) -> tuple[int, Capability]:
    known = {card.lower(): values for card, values in CARDS.items()}
    if (found := known.get(name.lower())) is not None:
        return found[0] * MIB, found[1]
    try:
        return parse_size_bytes(name), _DEFAULT_CAPABILITY
    except ValueError as exc:
        expected = did_you_mean(name, list(CARDS))
        message = f"--gpu: found {name!r}, expected {expected}, or a size like 24GiB"
        raise DeviceError(message) from exc
