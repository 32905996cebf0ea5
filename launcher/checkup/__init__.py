"""Whether a machine can run a cluster, looked at before anything starts.

`launcher doctor` runs `CHECKS` in this order. A new check is a function and a line in `CHECKS` of
its area's file; a new area is a file here and a line below.
"""

from launcher.checkup import (
    containers,
    driver,
    gpu_access,
    gpus,
    hub,
    limits,
    network,
    placement,
    programs,
    shared_memory,
    software,
    storage,
)
from launcher.checkup.base import Check

CHECKS: tuple[Check, ...] = (
    *software.CHECKS,
    *driver.CHECKS,
    *gpus.CHECKS,
    *placement.CHECKS,
    *programs.CHECKS,
    *containers.CHECKS,
    *gpu_access.CHECKS,
    *shared_memory.CHECKS,
    *storage.CHECKS,
    *hub.CHECKS,
    *network.CHECKS,
    *limits.CHECKS,
)
