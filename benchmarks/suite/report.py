"""What people read: the table of bars, the figures of all peers, the machine's limits.

Knows Markdown. Computes nothing but medians of what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.suite.bars import Judged
from benchmarks.suite.ratios import Spread
from benchmarks.suite.results import Results

FIGURES = {
    "requests_per_s": ("requests/s", 3),
    "output_tokens_per_s": ("tokens/s", 1),
    "ttft_ms": ("TTFT p50 ms", 0),
    "ttft_p99_ms": ("TTFT p99 ms", 0),
    "tpot_ms": ("TPOT p50 ms", 1),
}
RATIOS = {"requests_per_s": "requests/s", "ttft_ms": "TTFT", "tpot_ms": "TPOT"}
OURS = ("percept", "percept-text")
MIXED_FIGURE = "text_ttft_p99_ms"


def markdown(results: Results, judged: Sequence[Judged]) -> str:
    """The whole report."""
    sections = {
        "# Benchmark": _machine(results),
        "## Bars": bar_table(judged),
        "## Limits of this machine": _limits(results),
        "## Figures\n\nMedian over the rounds (smallest to largest).": figure_table(results),
        "## Ratios\n\nPaired by round: the median of the rounds' ratios (smallest to largest).": ratio_table(
            results
        ),
        "## Not measured": "\n".join(_item(text) for text in results.troubles),
        "## Warnings": "\n".join(_item(text) for text in sorted(set(_warnings(results)))),
    }
    return "\n\n".join(f"{head}\n\n{text}" for head, text in sections.items() if text) + "\n"


def bar_table(judged: Sequence[Judged]) -> str:
    """Bar, value, spread, met or not."""
    rows = [
        (
            each.bar.what,
            _limit(each.bar.bar, each),
            "" if each.bar.stretch is None else _limit(each.bar.stretch, each),
            show(each.value, 2, each.bar.unit),
            each.verdict if each.is_clear else f"{each.verdict} (the spread crosses the bar)",
        )
        for each in judged
    ]
    return _table(("what", "bar", "stretch", "value (spread)", "verdict"), rows)


def figure_table(results: Results) -> str:
    """All figures of all peers."""
    rows = []
    for case in results.measured_cases():
        for peer in results.peers():
            values = [results.spread(peer, case, name) for name in FIGURES]
            if any(values):
                digits = (digits for _, digits in FIGURES.values())
                shown = [show(value, count) for value, count in zip(values, digits, strict=True)]
                rows.append((case, peer, *shown, show(results.spread(peer, case, MIXED_FIGURE), 0)))
    names = (name for name, _ in FIGURES.values())
    return _table(("case", "peer", *names, "TTFT p99 of text ms"), rows) if rows else ""


def ratio_table(results: Results) -> str:
    """Percept over each peer."""
    rows = []
    others = [peer for peer in results.peers() if peer not in OURS]
    for case in results.measured_cases():
        for ours in OURS:
            for other in others:
                values = [results.ratio(ours, other, case, name) for name in RATIOS]
                if any(values):
                    rows.append((case, f"{ours} / {other}", *(show(value, 2) for value in values)))
    return _table(("case", "ratio", *RATIOS.values()), rows) if rows else ""


def show(value: Spread | None, digits: int, unit: str = "") -> str:
    """A value with its spread, where it was measured more than once."""
    if value is None:
        return "-"
    text = f"{value.median:.{digits}f}{unit}"
    return text if value.count == 1 else f"{text} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def _limit(limit: float, judged: Judged) -> str:
    return f"{'at most' if judged.bar.at_most else 'at least'} {limit:g}{judged.bar.unit}"


def _machine(results: Results) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in results.machine.items())


def _limits(results: Results) -> str:
    limits = [(name, f"{value:.3g}") for name, value in results.limits.items()]
    floors = [(f"floor: {name}", f"{value:.1f}") for name, value in results.floors.items()]
    return _table(("limit", "value"), [*limits, *floors]) if limits else ""


def _warnings(results: Results) -> Iterable[str]:
    for each in results.measurements:
        for warning in each.figures.warnings:
            yield f"{each.peer}, {each.case}, round {each.round_index + 1}: {warning}"


def _item(text: str) -> str:
    """One item of a list, however many lines it has."""
    return "- " + text.strip().replace("\n", "\n  ")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
