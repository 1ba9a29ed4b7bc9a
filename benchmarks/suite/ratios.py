"""Ratios of what was measured by turns, and how far they spread.

Knows pairs and medians. Does not know what is compared.

On a machine whose speed drifts, two figures of different hours say little and two of
the same round much. So ratios are taken within rounds, and only ratios are averaged.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Spread:
    """A value that was measured several times.

    Attributes:
        median: the value.
        low: the smallest, or a lower quartile where `of_quartiles` made it.
        high: the largest, or an upper quartile.
        count: how many there were.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """Median, smallest and largest; None where there are none."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def of_quartiles(cls, found: Mapping[str, Any]) -> Self:
        """Takes what `benchmarks.summary.spread` gave."""
        return cls(found["p50"], found["p25"], found["p75"], found["count"])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def paired_ratios(above: Mapping[int, float | None], below: Mapping[int, float | None]) -> list[float]:
    """Ratios of two series by round, where both have a value and the lower one is not 0.

    Args:
        above: value by round.
        below: value by round.
    """
    pairs = ((above[index], below[index]) for index in sorted(above.keys() & below.keys()))
    return [one / other for one, other in pairs if one is not None and other]
