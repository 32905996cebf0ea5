"""What the driver's error numbers mean and what an operator can do about them. Pure tables.

Three kinds of numbers: NVML's return codes, XIDs (the driver's fault reports, as in the kernel log)
and the bits that say why clocks are low. Called by `launcher.gpus`, which asks the driver; nothing
here acts on a fault.
"""

from launcher.gpu import GpuEvent

NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16

_RESET = "reset it (`nvidia-smi -r`) or reboot"
_REBOOT = f"look at `dmesg | grep -i xid`, then {_RESET}"
_REPLACE = "if it comes back after a reboot, have the GPU replaced"

_DRIVER_ADVICE = {
    NO_PERMISSION: "may this user open /dev/nvidia*? See the groups and the container's devices",
    9: "the driver's library is there but its kernel module is not loaded: try `modprobe nvidia`, "
    "and after a kernel update reinstall the driver or reboot",
    LIBRARY_NOT_FOUND: "install the NVIDIA driver, or start the container with GPU access",
    FUNCTION_NOT_FOUND: "the driver is too old; expected R450 or newer",
    GPU_IS_LOST: _REBOOT,
    18: "the driver was updated but the old one still runs: reboot, or unload the nvidia modules "
    "and load them again",
    999: "in a container its devices may have been taken away (systemd's daemon-reload does that): "
    "start it again; else reload the driver or reboot",
}
_GPU_ADVICE = {
    NO_PERMISSION: _DRIVER_ADVICE[NO_PERMISSION],
    NOT_FOUND: "it is not there any more; a changed MIG layout is seen after a restart",
    2: "it is not there any more; a changed MIG layout is seen after a restart",
    8: "see that its power cables are plugged in",
    14: _REPLACE,
    GPU_IS_LOST: f"it has fallen off the bus; {_REBOOT}",
    RESET_REQUIRED: f"stop what runs on it, then {_RESET}",
    999: _DRIVER_ADVICE[999],
}

# XIDs that a program brings upon itself, and those that only tell of what was done or is to be done
# about a fault; all others are held against the GPU, as NVIDIA's own Kubernetes device plugin does.
_PROGRAM_XIDS = {
    13: "a program's kernel failed (graphics engine exception)",
    31: "a program touched memory that is not its own (MMU fault)",
    43: "a program's channel was reset (GPU stopped processing)",
    45: "a program was cleaned up after another fault or a kill",
    68: "the video decoder failed on a program's data (NVDEC0 exception)",
    109: "a program hung in a context switch (CTXSW timeout)",
}
_NOTED_XIDS = {
    63: ("a faulty memory row was marked for remapping", "reset the GPU when it is idle"),
    154: ("what the GPU needs to recover has changed", "look at `dmesg | grep -i xid`"),
}
_GPU_XIDS = {
    48: ("uncorrectable memory error (double-bit ECC)", f"reset it; {_REPLACE}"),
    64: ("a faulty memory row could not be remapped", f"reset it; {_REPLACE}"),
    74: ("NVLink error", f"reset the GPU and its NVLink peers; {_REPLACE}"),
    79: ("the GPU has fallen off the bus", _REBOOT),
    94: ("contained memory error: only one program was hit", "reset it when it is idle"),
    95: ("uncontained memory error: any program may have been hit", f"reset it; {_REPLACE}"),
    119: ("the GPU's own processor (GSP) does not answer", _REBOOT),
    120: ("the GPU's own processor (GSP) failed", _REBOOT),
}
_UNKNOWN_XID = (
    "not a fault that programs are known to cause",
    f"look it up in NVIDIA's XID catalog, then {_RESET}",
)

_SLOWDOWNS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
HEAT = frozenset({"heat (software)", "heat (hardware)"})
"""Those that say something of one GPU beside others: power caps are part of full load."""


def driver_advice(code: int) -> str:
    """What to do when the driver itself refuses with this NVML return code."""
    return _DRIVER_ADVICE.get(code, "does `nvidia-smi` work? If not, reload the driver or reboot")


def gpu_advice(code: int) -> str:
    """What to do when a call for one GPU fails with this NVML return code."""
    return _GPU_ADVICE.get(code, "does `nvidia-smi` show it? If not, reset it or reboot")


def xid_event(uuid: str, code: int) -> GpuEvent:
    """Whether a fault report ends the use of the GPU or only of what ran on it."""
    if code in _PROGRAM_XIDS:
        return GpuEvent(uuid, "xid", code, False, f"XID {code}: {_PROGRAM_XIDS[code]}")
    is_fatal = code not in _NOTED_XIDS
    what, advice = _NOTED_XIDS.get(code) or _GPU_XIDS.get(code, _UNKNOWN_XID)
    return GpuEvent(uuid, "xid", code, is_fatal, f"XID {code}: {what}; {advice}")


def ecc_event(uuid: str) -> GpuEvent:
    """A memory error that could not be corrected."""
    what, advice = _GPU_XIDS[48]
    return GpuEvent(uuid, "ecc", None, True, f"{what}; {advice}")


def lost_event(uuid: str, trouble: str) -> GpuEvent:
    """A GPU that no longer answers."""
    return GpuEvent(uuid, "lost", None, True, trouble)


def blind_trouble(words: str, code: int) -> str:
    """All GPUs at once refuse: more likely this process may not ask any more."""
    return (
        f"the launcher's own access to the driver is gone: no GPU answers any more ({words}). "
        f"Replicas are left alone, and faults of their GPUs go unseen; {gpu_advice(code)}"
    )


def slowdowns(mask: int) -> tuple[str, ...]:
    """Why a GPU runs slower than it could; being idle or set to lower clocks is not among them."""
    return tuple(word for bit, word in _SLOWDOWNS.items() if mask & bit)


def remap_trouble(*, is_pending: bool, has_failed: bool) -> str:
    """What the state of its spare memory rows asks for; empty when nothing."""
    if has_failed:
        return "a faulty memory row could not be remapped: have the GPU replaced"
    if is_pending:
        return "a faulty memory row waits to be remapped: reset the GPU when it is idle"
    return ""
