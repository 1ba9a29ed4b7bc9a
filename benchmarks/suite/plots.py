"""The suite's plot: throughput, TTFT and TPOT of all peers beside each other.

Knows matplotlib, which is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.suite.results import Results

PANELS = (
    ("output_tokens_per_s", "output tokens/s (more is better)", ("text-1", "text-4", "text-16")),
    ("output_tokens_per_s", "output tokens/s (more is better)", ("image-1", "image-4", "image-16")),
    ("ttft_ms", "TTFT p50 ms (less is better)", ("text-1", "image-1")),
    ("tpot_ms", "TPOT p50 ms (less is better)", ("text-1", "text-16")),
)


def draw(results: Results, folder: Path) -> list[Path]:
    """Draws what was measured; returns the files, PNG and SVG. Nothing where matplotlib is missing."""
    if find_spec("matplotlib") is None or not results.measurements:
        return []
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(PANELS), 4), layout="constrained")
    axes = figure.subplots(1, len(PANELS), squeeze=False)[0]
    for axis, (name, title, cases) in zip(axes, PANELS, strict=True):
        measured = [case for case in cases if case in results.measured_cases()]
        _draw_panel(axis, results, name, measured)
        axis.set_title(title, fontsize=9)
    if floor := results.floors.get("decode_ms"):
        axes[-1].axhline(floor, color="black", linestyle=":", label="floor: weights read once")
    labels = {
        label: mark for axis in axes for mark, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(labels.values()), list(labels), loc="outside lower center", ncols=len(labels) or 1)
    figure.suptitle(_title(results), fontsize=10)
    return _save(figure, folder)


def _draw_panel(axis: Any, results: Results, name: str, cases: Sequence[str]) -> None:
    peers = results.peers()
    width = 0.8 / max(1, len(peers))
    for place, peer in enumerate(peers):
        for index, case in enumerate(cases):
            value = results.spread(peer, case, name)
            if value is None:
                continue
            error = [[value.median - value.low], [value.high - value.median]]
            at = index + (place - (len(peers) - 1) / 2) * width
            axis.bar(at, value.median, width, color=f"C{place}", label=peer, yerr=error, ecolor="gray")
    axis.set_xticks(range(len(cases)), cases)
    axis.grid(axis="y", alpha=0.3)


def _title(results: Results) -> str:
    names = ("processor", "cores used", "date")
    return ", ".join(str(results.machine[name]) for name in names if name in results.machine)


def _save(figure: Any, folder: Path) -> list[Path]:
    paths = [folder / f"suite.{ending}" for ending in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths
