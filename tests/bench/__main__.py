"""What the router costs, on this machine, next to going direct.

    python -m tests.bench [--quick] [--scenario NAME] [--reps N] [--json FILE] [--markdown]

Four stand-in replicas that cost next to nothing, a load that checks every byte, and between them
nothing (`direct`), a relay of bytes (`relay floor`: the least a Python process between two sockets
can cost), or the router with its default settings. The router has a core of its own where there
are two. Latency over two cores is mostly their wake-up: compare it with the relay's.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from tests.bench import machine, table
from tests.bench.processes import BenchError
from tests.bench.scenarios import FULL, QUICK, SCENARIOS, Results, measure

NOTES = """\
The medians of {reps} interleaved repetitions; ratios are medians of the ratios inside each.
middle: the relay or the router. whole path: load, middle and stand-ins together.
noise: share of the router's core / of the load's cores that others used in the router's runs."""


def main() -> int:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = given.scenario or list(SCENARIOS)
    size = QUICK if given.quick else FULL
    reps = given.reps or (1 if given.quick else 3)
    where = machine.describe()
    print(table.machine_line(where), flush=True)
    try:
        results = measure(names, size, reps)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    rows = list(results.rows(names))
    print(table.markdown(rows) if given.markdown else table.plain(rows))
    print(NOTES.format(reps=reps))
    if given.quick:
        print("--quick: too short to measure anything; it shows that all of it runs.")
    if given.json:
        _write(given.json, where, results, names)
    return _verdict(results)


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="python -m tests.bench", description="What the router costs next to going direct."
    )
    options.add_argument("--quick", action="store_true", help="a few seconds: does it run?")
    options.add_argument(
        "--scenario", choices=list(SCENARIOS), action="append", help="repeatable; default: all"
    )
    options.add_argument("--reps", type=int, help="interleaved repetitions; default 3")
    options.add_argument("--json", type=Path, metavar="FILE", help="rows and every single run")
    options.add_argument("--markdown", action="store_true", help="the table for a README")
    given = options.parse_args()
    if given.reps is not None and given.reps < 1:
        options.error(f"argument --reps: found {given.reps}, expected at least 1")
    return given


def _write(path: Path, where: dict[str, str | int], results: Results, names: list[str]) -> None:
    rows = [
        {
            "scenario": row.scenario,
            "figure": row.figure,
            "unit": row.unit,
            **row.values,
            "router_to_direct": row.to_direct,
            "router_to_relay": row.to_relay,
            "noise": row.noise,
            "load_noise": row.load_noise,
        }
        for row in results.rows(names)
    ]
    document = {"machine": where, "figures": rows, "runs": results.as_json()}
    path.write_text(json.dumps(document, indent=1) + "\n")


def _verdict(results: Results) -> int:
    """A figure of a run with errors is worth nothing: the exit code says so."""
    for run in results.runs:
        if run.errors:
            where = f"{run.load}, {run.target}, repetition {run.repetition + 1}"
            print(f"ERRORS: {where}: {run.errors}, the first: {run.first_error}")
    print(f"errors: {results.errors}")
    return 1 if results.errors else 0


if __name__ == "__main__":
    sys.exit(main())
