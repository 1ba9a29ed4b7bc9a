"""Plots of one or several runs, as PNG and SVG.

Knows matplotlib, which is imported when something is drawn. Does not compute figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from percept.bench.probe import BenchError
from percept.bench.records import RequestRecord, RunResult
from percept.bench.report import figures
from percept.bench.summary import Summary
from percept.bench.workload import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LATENCY_FIELDS = {
    "time to first token": "ttft_s",
    "time per output token": "tpot_s",
    "whole answer": "e2e_s",
}
COMPARED = ("output tokens/s", "TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "E2E p50 ms", "E2E p99 ms")
STRETCHES = 60
"""Of which a plot over time has at most so many."""

LEAST_STRETCH_S = 0.25
MARKERS: dict[Kind, str] = {"text": "o", "image": "^"}
LINES: dict[Kind, str] = {"text": "-", "image": "--"}


def check_plots_possible() -> None:
    """Refuses before anything is measured.

    Raises:
        BenchError: matplotlib is not installed; says how to install it.
    """
    if find_spec("matplotlib") is None:
        raise BenchError("plots need matplotlib. Install it with: pip install 'percept[bench]'")


def draw_run(folder: Path, result: RunResult) -> list[Path]:
    """Draws one run. Returns the files, PNG and SVG of each plot.

    Raises:
        BenchError: matplotlib is not installed.
    """
    return draw_runs(folder, {result.name: result})


def draw_runs(folder: Path, runs: dict[str, RunResult]) -> list[Path]:
    """Draws runs over each other, each under its name.

    Raises:
        BenchError: matplotlib is not installed.
    """
    check_plots_possible()
    plots: dict[str, Callable[[dict[str, RunResult]], Figure]] = {
        "latency_cdf": _latency_cdf,
        "ttft_over_time": _ttft_over_time,
        "tokens_over_time": _tokens_over_time,
    }
    return [path for name, draw in plots.items() for path in _save(draw(runs), folder, name)]


def draw_comparison(folder: Path, summaries: dict[str, Summary]) -> list[Path]:
    """Draws the main figures of runs as bars beside each other.

    Raises:
        BenchError: matplotlib is not installed.
    """
    check_plots_possible()
    figure, axes = _figure(len(COMPARED), 2.4)
    rows = {name: figures(summary) for name, summary in summaries.items()}
    for axis, compared in zip(axes, COMPARED, strict=True):
        for place, (name, row) in enumerate(rows.items()):
            value = row.get(compared)
            bars = axis.bar(place, value or 0, color=f"C{place}", label=name)
            axis.bar_label(bars, [in_few_digits(value)], fontsize=8)
        axis.set_title(compared, fontsize=9)
        axis.set_xticks([])
        axis.margins(y=0.15)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(rows))
    return _save(figure, folder, "compare")


def in_few_digits(value: float | None) -> str:
    """A figure with about three digits that count."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _figure(columns: int, width: float) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, 4), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths


def _good(result: RunResult) -> list[RequestRecord]:
    return [record for record in result.records if record.error is None]


def _latency_cdf(runs: dict[str, RunResult]) -> Figure:
    figure, axes = _figure(len(LATENCY_FIELDS), 4)
    for axis, (title, field) in zip(axes, LATENCY_FIELDS.items(), strict=True):
        for place, (name, result) in enumerate(runs.items()):
            for kind, records in _by_kind(result).items():
                label = name if len(_by_kind(result)) == 1 else f"{name}, {kind}"
                _draw_cdf(axis, [getattr(each, field) for each in records], label, f"C{place}{LINES[kind]}")
        axis.set(title=title, xlabel="ms", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of requests")
    _explain(axes[0])
    return figure


def _by_kind(result: RunResult) -> dict[Kind, list[RequestRecord]]:
    """Answered requests by kind: a mix of two kinds is no distribution that means anything."""
    found: dict[Kind, list[RequestRecord]] = {}
    for record in _good(result):
        found.setdefault(record.kind, []).append(record)
    return found


def _explain(axis: Axes) -> None:
    """A legend, where anything was drawn: a run may have answered nothing."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles, labels)


def _draw_cdf(axis: Axes, seconds: Sequence[float | None], name: str, style: str) -> None:
    values = sorted(value * 1000 for value in seconds if value is not None)
    shares = [(place + 1) / len(values) for place in range(len(values))]
    # Up from nothing at the smallest.
    axis.step(values[:1] + values, [0.0, *shares] if values else [], style, where="post", label=name)


def _ttft_over_time(runs: dict[str, RunResult]) -> Figure:
    figure, (axis,) = _figure(1, 9)
    for place, (name, result) in enumerate(runs.items()):
        for kind, records in _by_kind(result).items():
            times = [each.scheduled_s for each in records]
            delays = [(each.ttft_s or 0.0) * 1000 for each in records]
            axis.scatter(
                times, delays, s=12, marker=MARKERS[kind], color=f"C{place}", label=f"{name}, {kind}"
            )
    axis.set(title="time to first token", xlabel="due, s after the start", ylabel="ms")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    _explain(axis)
    return figure


def _tokens_over_time(runs: dict[str, RunResult]) -> Figure:
    figure, (axis,) = _figure(1, 9)
    longest = max(result.duration_s for result in runs.values())
    width_s = max(longest / STRETCHES, LEAST_STRETCH_S)
    for name, result in runs.items():
        times, rates = token_rates(result, width_s)
        axis.step(times, rates, where="post", label=name)
    axis.set(title="output tokens per second", xlabel="s after the start", ylabel="tokens/s")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    _explain(axis)
    return figure


def token_rates(result: RunResult, width_s: float) -> tuple[list[float], list[float]]:
    """Output tokens per second in stretches of `width_s` seconds.

    An answer's tokens are spread evenly over its deltas.

    Returns:
        Where each stretch begins, in seconds, and its rate. One more point ends the last.
    """
    counts = [0.0] * max(1, math.ceil(result.duration_s / width_s))
    for record in _good(result):
        weight = record.token_count / len(record.delta_times_s)
        for time in record.delta_times_s:
            counts[min(len(counts) - 1, int(time / width_s))] += weight
    rates = [count / width_s for count in counts]
    return [place * width_s for place in range(len(counts) + 1)], [*rates, rates[-1]]
