"""The result as text: aligned for a terminal, or as a Markdown table."""

from collections.abc import Iterable

from tests.bench.processes import DIRECT, RELAY, ROUTER
from tests.bench.scenarios import Row

HEAD = (
    *("figure", "unit", "direct", "relay floor", "router", "router/direct", "router/relay"),
    "noise",
)
LEFT_COLUMNS = 2


def machine_line(machine: dict[str, str | int]) -> str:
    return (
        f"machine: {machine['cpu']}, {machine['cores']} cores (router on {machine['router_on']}, "
        f"load and replicas on {machine['load_on']}), {machine['kernel']}, "
        f"Python {machine['python']}, uvloop {machine['uvloop']}, "
        f"aiohttp {machine['aiohttp']}, httptools {machine['httptools']}"
    )


def plain(rows: Iterable[Row]) -> str:
    lines = [HEAD, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < LEFT_COLUMNS else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(rows: Iterable[Row]) -> str:
    rule = ["---"] * LEFT_COLUMNS + ["---:"] * (len(HEAD) - LEFT_COLUMNS)
    lines = [HEAD, rule, *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    values = [_number(row.values[target], row.digits) for target in (DIRECT, RELAY, ROUTER)]
    ratios = [_ratio(row.to_direct), _ratio(row.to_relay)]
    return (row.figure, row.unit, *values, *ratios, f"{row.noise:.0%}/{row.load_noise:.0%}")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"
