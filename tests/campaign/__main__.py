"""Random faults against a real fleet under mixed load, and a judge for every call.

    python -m tests.campaign --minutes 10 --seed 1

Exits with 0 when no call was lost and nothing leaked, else with 1; with 2 when it could not run.
"""

import argparse
import contextlib
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import uvloop

from launcher.router_client import RouterClient
from router.errors import OperatorError
from tests.campaign import table
from tests.campaign.campaign import MODELS, Campaign, Report
from tests.campaign.processes import CampaignError, running
from tests.campaign.schedule import Fault, planned


def main() -> int:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    duration_s = given.minutes * 60
    faults = planned(given.seed, duration_s, given.replicas)
    print(
        f"seed {given.seed}: {len(faults)} faults planned in {duration_s:g} s; {given.replicas} "
        f"replicas, {given.clients} clients, token model {given.token_model}",
        flush=True,
    )
    if given.plan:
        print("\n".join(map(str, faults)))
        return 0
    try:
        with _folder(given.keep) as folder:
            report = uvloop.run(_run(given, folder, faults))
    except (CampaignError, OperatorError) as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(table.plain(report))
    if given.json:
        given.json.write_text(table.as_json(report) + "\n")
    if not report.is_good:
        print(f"again: python -m tests.campaign --minutes {given.minutes:g} --seed {given.seed}")
    return 0 if report.is_good else 1


async def _run(given: argparse.Namespace, folder: Path, faults: tuple[Fault, ...]) -> Report:
    with running(folder, given.replicas, given.token_model, given.time_scale) as fleet:
        async with RouterClient(fleet.admin_socket) as admin:
            campaign = Campaign(fleet, admin, given.seed, given.token_model)
            return await campaign.run(faults, given.minutes * 60, given.clients)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """For logs and sockets; short, as it must hold a unix socket."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        yield Path(folder)


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="python -m tests.campaign", description="Faults, load, and a judge for every call."
    )
    add = options.add_argument
    add("--minutes", type=float, default=10.0, help="of load and faults; default 10")
    add("--seed", type=int, help="of faults and calls; default: a new one, printed")
    add("--replicas", type=int, default=4, help="default 4")
    add("--clients", type=int, default=24, help="calls at a time; default 24")
    add("--token-model", choices=[*MODELS], default="text", help="of the simulators")
    add("--time-scale", type=float, default=2.0, help="of the simulators; default 2")
    add("--plan", action="store_true", help="print the faults of this seed, and no more")
    add("--json", type=Path, metavar="FILE", help="the report for programs")
    add("--keep", type=Path, metavar="FOLDER", help="a new one; all logs stay there")
    given = options.parse_args()
    if given.replicas < 2 or given.clients < 1 or given.minutes <= 0:
        options.error("expected at least 2 replicas, 1 client, and minutes above 0")
    if given.keep and given.keep.exists():
        options.error(f"--keep: {given.keep} is there already")
    if given.seed is None:
        given.seed = random.SystemRandom().randrange(10**6)
    return given


if __name__ == "__main__":
    sys.exit(main())
