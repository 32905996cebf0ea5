"""`launcher explain`: where one call's time went, which replicas it tried, and why.

The running router tells it, from memory; what it does not remember may stand in its log, and if
not, what it does remember is said. Changes nothing.
"""

import asyncio
import json
import re
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from launcher import log_files, story_view
from launcher.cluster import Cluster
from launcher.router_client import RouterAway, RouterClient
from launcher.router_process import LOG_NAME
from router.errors import OperatorError

MOST_OTHERS = 5
MOST_LOGGED = 1024
_FAILED = re.compile(rb'"status":(?!499)[45]\d\d,')
FOUND, NOT_FOUND = 0, 1
_KINDS = {
    "recent": "the last {:,}",
    "failed": "the last {:,} that failed",
    "slow": "the {:,} slowest of an hour",
}


def run(
    path: Path,
    call_id: str | None,
    *,
    last_failed: bool = False,
    slowest: bool = False,
    as_json: bool = False,
) -> int:
    if [call_id is not None, last_failed, slowest].count(True) != 1:
        raise OperatorError("expected one of: a call's id (x-request-id), --last-failed, --slowest")
    cluster = Cluster.load_leniently(path, is_quiet=as_json)
    told = asyncio.run(_ask(cluster, call_id, "failed" if last_failed else "slow"))
    calls = told.get("calls") or []
    is_logged = not calls and not slowest
    if is_logged:
        wanted = _FAILED if call_id is None else _of_call(call_id)
        calls = [story_view.from_log(line) for line in _logged(cluster, wanted)]
    if as_json:
        print(json.dumps({"calls": calls, "remembered": told.get("remembered")}, indent=2))
    elif calls:
        _show(calls[0])
        if is_logged:
            print(f"\nThis is from the router's log, {_why_from_log(calls[0], call_id, told)}.")
        _show_others(calls[1:], is_list=call_id is None)
    else:
        what = f"call {call_id!r}" if call_id is not None else "failed call" * last_failed or "call"
        raise OperatorError(_not_found(what, told, cluster))
    return FOUND if calls else NOT_FOUND


async def _ask(cluster: Cluster, call_id: str | None, kind: str) -> dict[str, Any]:
    """What the router remembers; `away` says why nobody tells."""
    try:
        async with RouterClient(cluster.folder.admin_socket) as client:
            return await (client.calls(kind) if call_id is None else client.call(call_id))
    except RouterAway as exc:
        return {"away": str(exc)}


def _of_call(call_id: str) -> re.Pattern[bytes]:
    return re.compile(re.escape(f'"id":{json.dumps(call_id)},'.encode()))


def _logged(cluster: Cluster, wanted: re.Pattern[bytes]) -> list[dict[str, Any]]:
    """The latest lines of such calls in the router's log, the last one first."""
    log = cluster.folder.log(LOG_NAME)
    both = chain(_lines(log_files.previous(log), wanted), _lines(log, wanted))
    return list(deque(both, MOST_LOGGED))[::-1]


def _lines(log: Path, wanted: re.Pattern[bytes]) -> Iterator[dict[str, Any]]:
    try:
        with log.open("rb") as file:
            for line in file:
                if wanted.search(line) and b'"event":"call"' in line:
                    yield json.loads(line)
    except (OSError, ValueError):  # no log, or one that is being cut
        return


# ---- showing


def _show(call: dict[str, Any]) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in story_view.lines(call, width):
        print(line)


def _show_others(others: list[dict[str, Any]], *, is_list: bool) -> None:
    if others and is_list:
        print("\nothers:")
        for story in others[:MOST_OTHERS]:
            print(story_view.brief(story))
    elif others:
        print(f"\n{len(others)} earlier calls had the same id; --json has them all")


def _why_from_log(call: dict[str, Any], call_id: str | None, told: dict[str, Any]) -> str:
    remembered = told.get("remembered")
    if remembered is None:
        return f"as {told['away']}"
    if call["arrived"] < remembered["router_began"]:
        return f"as the router was restarted since, at {remembered['router_began']}"
    if call_id is None:  # it may be one that the router does not count as failed
        return f"as no failed call is remembered: {_memory(told)}"
    return f"as it was forgotten: {_memory(told)}"


def _not_found(what: str, told: dict[str, Any], cluster: Cluster) -> str:
    log = cluster.folder.log(LOG_NAME)
    return f"no {what} is remembered: {_memory(told)}\nits log has one line per call: {log}"


def _memory(told: dict[str, Any]) -> str:
    """How far back the router's memory goes."""
    remembered = told.get("remembered")
    if remembered is None:
        return str(told["away"])
    text = f"this router began at {remembered['router_began']} and has ended "
    text += f"{remembered['calls']:,} calls"
    known = [
        f"{words.format(remembered[kind]['calls'])} (since {remembered[kind]['since']})"
        for kind, words in _KINDS.items()
        if remembered[kind]["calls"]
    ]
    return f"{text}; it remembers {', '.join(known)}" if known else text
