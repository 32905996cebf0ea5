"""`launcher status`: what runs right now, for people or (`--json`) for scripts. Changes nothing."""

import asyncio
import json
from pathlib import Path

from launcher.cluster import Cluster


def run(path: Path, *, as_json: bool = False) -> int:
    from launcher import status

    current = asyncio.run(status.read(Cluster.load(path)))
    if as_json:
        print(json.dumps(current.as_json(), indent=2))
        return 0
    from rich.console import Console

    from launcher import view

    Console(highlight=False, soft_wrap=True).print(view.render(current))
    return 0
