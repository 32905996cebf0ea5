"""`launcher status`: what runs right now, for people or (`--json`) for scripts. Changes nothing."""

import asyncio
import json
import sys
from pathlib import Path

from launcher.cluster import Cluster

_PIPE_WIDTH = 250


def run(path: Path, *, as_json: bool = False) -> int:
    from launcher import status

    current = asyncio.run(status.read(Cluster.load(path)))
    if as_json:
        print(json.dumps(current.as_json(), indent=2))
        return 0
    from rich.console import Console

    from launcher import view

    # A pipe has no width: lines stay whole there, for grep.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(highlight=False, width=width).print(view.render(current))
    return 0
