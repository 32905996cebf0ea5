"""`launcher devices`: the GPUs of this machine, how they are and who uses them. Changes nothing.

Exit code 0 when all is well, also where there is no GPU or driver at all; 1 when the driver cannot
be used or a GPU needs somebody to look after it.

`--json` prints one object; fields are added to it, never renamed. Null: this device has no such
thing or does not tell. With `--watch` it is one object per line.

    state           "ok"; "none": no driver library; "broken": there, but of no use
    driver_version  "560.35.03"
    cuda_version    the newest CUDA that the driver can run: "12.6"
    trouble         what is wrong with the driver, or with GPUs that are missing below; else ""
    devices         GPUs in PCI bus order, each followed by its MIG slices:
      device              how a config may name it: "cuda:0"; a slice's is its UUID
      uuid, parent        "GPU-..."; a slice's is "MIG-...", its parent the GPU's uuid
      index               the N of cuda:N; a slice has its parent's
      name                as the driver tells it
      compute_capability  "9.0"
      pci_bus_id          "00000000:1A:00.0"
      numa_node           null also on machines with one node
      mig_enabled         then only its slices can run anything
      memory_bytes, memory_used_bytes, memory_free_bytes
      utilisation_percent, temperature_c, power_w, power_limit_w
      throttle_reasons    why it is slower than it could be: ["power cap"]
      ecc_uncorrected     memory errors since the driver was loaded
      processes           [{"pid", "name", "used_bytes"}]
      trouble             why it cannot be used and what to do; else ""
"""

import io
import json
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from launcher.asking import ask

if TYPE_CHECKING:
    from rich.console import RenderableType

    from launcher.gpu_view import Line, Look

_EVERY_S = 2.0
_SIMULATOR_HINT = "The simulator needs no GPU: `engine: simulator` in the config."


def run(*, as_json: bool = False, watch: bool = False) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a process may be named in any script
        sys.stdout.reconfigure(errors="replace")
    with closing(_looks()) as looks:
        look = next(looks)
        if watch and look.inventory.gpus:
            return _watch(look, looks, as_json=as_json)
    if as_json:
        from launcher import gpu_view

        print(json.dumps(gpu_view.as_json(look), indent=2))
    else:
        _show(look)
    return 0 if look.is_well else 1


def _looks() -> Generator["Look", None, None]:
    """What the driver says, each time that the next is asked for."""
    from launcher.gpu_view import Look
    from launcher.gpus import GpuMonitor

    def look() -> Look:
        return Look(monitor.inventory, monitor.readings())

    monitor = ask(lambda: GpuMonitor().__enter__())
    while True:
        current = ask(look)  # where this hangs, closing the driver would hang, too
        try:
            yield current
        except GeneratorExit:
            ask(monitor.__exit__)
            raise


def _show(look: "Look") -> None:
    from launcher import gpu_view

    if not sys.stdout.isatty():
        for line in gpu_view.plain(look):
            print(line)
    else:
        from rich.console import Console

        console = Console(highlight=False)
        console.print(_picture(gpu_view.blocks(look, console.width)))
    if not look.inventory.gpus and look.is_well:
        print(_SIMULATOR_HINT)


def _picture(lines: Iterable["Line"]) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    # Text, not str: a process's name may hold what rich would take for markup.
    return Group(*(Text(line.text, line.style, no_wrap=True, overflow="crop") for line in lines))


def _watch(look: "Look", looks: Iterator["Look"], *, as_json: bool) -> int:
    """Until Ctrl-C."""
    if as_json:
        _watch_json(look, looks)
    elif sys.stdout.isatty():
        _watch_live(look, looks)
    else:
        _watch_lines(look, looks)
    return 0


def _every_look(look: "Look", looks: Iterator["Look"]) -> Iterator["Look"]:
    while True:
        yield look
        time.sleep(_EVERY_S)
        look = next(looks)


def _watch_json(look: "Look", looks: Iterator["Look"]) -> None:
    from launcher import gpu_view

    for current in _every_look(look, looks):
        print(json.dumps(gpu_view.as_json(current)), flush=True)


def _watch_live(look: "Look", looks: Iterator["Look"]) -> None:
    from rich.console import Console
    from rich.live import Live

    from launcher import gpu_view

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        for current in _every_look(look, looks):
            lines = gpu_view.fitting(current, console.width, console.height)
            live.update(_picture(lines), refresh=True)


def _watch_lines(look: "Look", looks: Iterator["Look"]) -> None:
    """The columns are named once, each device's line begins with its time."""
    from launcher import gpu_view

    print(gpu_view.heading(look.inventory), *look.inventory.trouble.splitlines(), sep="\n")
    is_first = True
    for current in _every_look(look, looks):
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        head, *lines = gpu_view.table(current)
        if is_first:
            print(f"{'TIME':{len(at)}}  {head}")
        for line in lines:
            print(f"{at}  {line}")
        sys.stdout.flush()
        is_first = False
