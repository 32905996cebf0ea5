"""Nonsense over HTTP against a real router, with a good call in between every so often.

    python -m tests.fuzz --requests 100000 --seed 1

Exits with 0 when there was no 500 of the router's own, no crash, no leak, and every good call was
right; else with 1; with 2 when it could not run.
"""

import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path

import uvloop

from launcher.router_client import RouterClient
from router.errors import OperatorError
from tests.campaign.processes import CampaignError, running
from tests.fuzz.attack import ROUTER, Attack, Report

REPLICAS = 2
TIME_SCALE = 100.0
SHORT = ("--max-total-tokens=400",)
"""Nonsense asks for as much as there is."""
MIB = 1024**2


def main() -> int:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            report = uvloop.run(_run(given, Path(folder)))
    except (CampaignError, OperatorError) as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    _print(report, given.seed)
    return 0 if report.is_good else 1


async def _run(given: argparse.Namespace, folder: Path) -> Report:
    with running(
        folder, REPLICAS, time_scale=TIME_SCALE, router=ROUTER, engine_flags=SHORT
    ) as fleet:
        async with RouterClient(fleet.admin_socket) as admin:
            attack = Attack(fleet, admin, given.seed)
            return await attack.run(given.requests, given.connections)


def _print(report: Report, seed: int) -> None:
    print(
        f"seed {seed}: {report.requests:,} requests over {report.connections:,} connections in "
        f"{report.seconds:.0f} s; {report.silent:,} connections got no reply"
    )
    counts = ", ".join(f"{status}: {count:,}" for status, count in sorted(report.statuses.items()))
    print(f"replies: {counts}")
    print(f"good calls between: {report.good:,}, wrong {len(report.wrong)}")
    for wrong in report.wrong[:20]:
        print(f"  {wrong}")
    for sent, got in report.bad[:5]:
        print(f"500 for {sent[:2000]!r}\n  came {got[:1000]!r}")
    before, after = report.rss_bytes
    print(f"router's memory: {before / MIB:.0f} MiB before, {after / MIB:.0f} MiB after")
    for leak in report.leaks[:20]:
        print(f"  {leak}")
    found = f"{len(report.bad)}, wrong {len(report.wrong)}, leaks {len(report.leaks)}"
    print(f"500 of the router's own: {found}")


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Nonsense over HTTP."
    )
    add = options.add_argument
    add("--requests", type=int, default=100_000, help="default 100,000")
    add("--connections", type=int, default=32, help="at a time; default 32")
    add("--seed", type=int, help="of everything sent; default: a new one, printed")
    given = options.parse_args()
    if given.requests < 1 or given.connections < 1:
        options.error("expected at least one request and one connection")
    if given.seed is None:
        given.seed = random.SystemRandom().randrange(10**6)
    return given


if __name__ == "__main__":
    sys.exit(main())
