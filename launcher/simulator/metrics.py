"""TGI's Prometheus text: gauges, counters and histograms that appear once they were touched.

Written by hand because a series that was never touched must be missing, as in TGI, and names have
no ``_total`` suffix; the usual client library does neither. Handlers and the engine write, the
``/metrics`` route renders.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

_DURATIONS_S = tuple(0.0001 * 1.5**k for k in range(1, 36))
_BATCH_SIZES = tuple(float(size) for size in range(1, 1025))


class Histogram:
    """Counts per bucket, plus sum and count."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterable[str]:
        comma = f"{labels}," if labels else ""
        braces = f"{{{labels}}}" if labels else ""
        running = 0
        for bound, count in zip(self._bounds, self._counts, strict=False):
            running += count
            yield f'{name}_bucket{{{comma}le="{bound:g}"}} {running}'
        total = running + self._counts[-1]
        yield f'{name}_bucket{{{comma}le="+Inf"}} {total}'
        yield f"{name}_sum{braces} {self._sum}"
        yield f"{name}_count{braces} {total}"


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{key}="{value}"' for key, value in labels.items())


class Metrics:
    """All series of one process."""

    def __init__(self, max_input_tokens: int, max_total_tokens: int, with_help: bool) -> None:
        self._with_help = with_help
        self._gauges: dict[str, float] = {}
        self._counters: dict[str, dict[str, int]] = {}
        self._histograms: dict[str, dict[str, Histogram]] = {}
        self._bounds = {
            "tgi_request_input_length": _even_steps(max_input_tokens),
            "tgi_request_generated_tokens": _even_steps(max_total_tokens),
            "tgi_request_max_new_tokens": _even_steps(max_total_tokens),
            "tgi_batch_next_size": _BATCH_SIZES,
        }

    def set_gauge(self, name: str, value: float) -> None:
        self._gauges[name] = value

    def add_gauge(self, name: str, difference: float) -> None:
        self._gauges[name] = self._gauges.get(name, 0) + difference

    def count(self, name: str, **labels: str) -> None:
        series = self._counters.setdefault(name, {})
        key = _labels(labels)
        series[key] = series.get(key, 0) + 1

    def observe(self, name: str, value: float, **labels: str) -> None:
        series = self._histograms.setdefault(name, {})
        key = _labels(labels)
        if key not in series:
            series[key] = Histogram(self._bounds.get(name, _DURATIONS_S))
        series[key].observe(value)

    def step(self, method: str, duration_s: float) -> None:
        """One engine step is over."""
        self.count("tgi_batch_inference_count", method=method)
        self.count("tgi_batch_inference_success", method=method)
        self.observe("tgi_batch_inference_duration", duration_s, method=method)
        self.observe("tgi_batch_forward_duration", duration_s, method=method)

    def render(self) -> str:
        """The scrape: one block per series name, a blank line after each."""
        lines: list[str] = []
        for name, counters in self._counters.items():
            lines += self._head(name, "counter")
            lines += [f"{name}{{{k}}} {v}" if k else f"{name} {v}" for k, v in counters.items()]
            lines.append("")
        for name, value in self._gauges.items():
            lines += [*self._head(name, "gauge"), f"{name} {value:g}", ""]
        for name, histograms in self._histograms.items():
            lines += self._head(name, "histogram")
            for key, histogram in histograms.items():
                lines += histogram.lines(name, key)
            lines.append("")
        return "\n".join(lines) + "\n"

    def _head(self, name: str, kind: str) -> list[str]:
        words = name.removeprefix("tgi_").replace("_", " ")
        help_line = [f"# HELP {name} {words}"] if self._with_help else []
        return [*help_line, f"# TYPE {name} {kind}"]


def _even_steps(top: int) -> tuple[float, ...]:
    return tuple(top * step / 100 for step in range(1, 101))
