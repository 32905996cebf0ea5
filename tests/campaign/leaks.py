"""What a process holds at one moment, and what it should not hold any more.

Files and sockets are read from /proc; loads and queues from the router's admin API; what engines
run from their metrics. Two looks at rest are compared, one before all faults and one after.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOSE_WAIT = "08"
MAX_GROWTH_BYTES = 24 * 1024**2
MAX_GROWTH_SHARE = 0.25
BUG = re.compile(r"Traceback|a bug in the router|never retrieved|was destroyed|never awaited")
BUSY = re.compile(r"^(tgi_queue_size|tgi_batch_current_size) (?!0$)(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Look:
    """A process at rest."""

    files: Counter[str]
    """Open files by kind: what a link in /proc/PID/fd says without its number."""
    half_closed: int
    """Sockets whose other end is gone and that nobody closes."""
    rss_bytes: int
    threads: int
    children: int


def look(pid: int) -> Look:
    links = [_link(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    return Look(
        files=Counter(re.sub(r"\[\d+\]|\d{3,}", "", link) for link in links if link),
        half_closed=len(inodes & _inodes(pid, CLOSE_WAIT)),
        rss_bytes=_status(pid, "VmRSS") * 1024,
        threads=_status(pid, "Threads"),
        children=len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()),
    )


def grown(before: Look, after: Look) -> list[str]:
    """What there is more of than before, and must not be."""
    more = after.files - before.files
    leaks = [f"{count} more open files: {name}" for name, count in more.items()]
    if after.half_closed:
        leaks.append(f"{after.half_closed} half-closed sockets")
    for name in ("threads", "children"):
        was, is_now = getattr(before, name), getattr(after, name)
        if is_now > was:
            leaks.append(f"{is_now} {name}, {was} before")
    allowed = before.rss_bytes * (1 + MAX_GROWTH_SHARE) + MAX_GROWTH_BYTES
    if after.rss_bytes > allowed:
        leaks.append(f"memory: {after.rss_bytes >> 20} MiB, {before.rss_bytes >> 20} before")
    return leaks


def unrest(state: dict[str, Any]) -> list[str]:
    """What the router still holds by its own account; empty at rest."""
    held = {"calls running": state["calls"]}
    for pool in state["pools"]:
        held["waiting calls"] = pool["waiting_calls"]
        held["waiting bytes"] = pool["waiting_bytes"]
        for replica in pool["replicas"]:
            held[f"{replica['id']}: requests"] = replica["requests"]
            held[f"{replica['id']}: tokens"] = replica["tokens"]
    return [f"{what}: {count}" for what, count in held.items() if count]


def engine_unrest(metrics: str) -> list[str]:
    """What an engine still runs; empty at rest."""
    return [f"{name} {value}" for name, value in BUSY.findall(metrics)]


def bugs(log: str) -> list[str]:
    """Lines of a log that only a bug writes, with what comes before them."""
    lines = log.splitlines()
    return [
        " | ".join(lines[max(0, i - 1) : i + 12])
        for i, line in enumerate(lines)
        if BUG.search(line)
    ]


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except FileNotFoundError:  # closed meanwhile
        return ""


def _inodes(pid: int, state: str) -> set[str]:
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == state}


def _status(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0])
