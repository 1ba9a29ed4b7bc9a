"""Figures of repeated measurements: the median, and how far they spread."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def spread(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Median, quartiles and count of measured values."""
    lower, middle, upper = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        "p50": round(middle, digits),
        "p25": round(lower, digits),
        "p75": round(upper, digits),
        "count": len(values),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(len(ordered) * percent) // 100) - 1))]


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Ratio of two series that were measured by turns: the median of the pairs' ratios."""
    return spread([one / other for one, other in zip(above, below, strict=True)])


def report_arguments(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with what all of these programs take."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    return parser


def write_report(figures: dict[str, Any], file: Path | None) -> None:
    """Prints the figures, and writes them where a file was named."""
    text = json.dumps(figures, indent=2)
    print(text, flush=True)
    if file is not None:
        file.write_text(text + "\n")
