"""Percentiles. Knows numbers, not what they measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Distribution:
    """What is said about many values of one unit.

    Attributes:
        count: how many there were, at least one.
        mean: their arithmetic mean.
        p50: the median.
        p90: nine of ten are at most this.
        p99: 99 of 100 are at most this.
        max: the largest.
    """

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float], scale: float = 1.0) -> Self | None:
        """Describes the values, each times `scale`; None where there are none."""
        ordered = sorted(value * scale for value in values)
        if not ordered:
            return None
        p50, p90, p99 = (percentile(ordered, percent) for percent in (50, 90, 99))
        mean = math.fsum(ordered) / len(ordered)
        return cls(count=len(ordered), mean=mean, p50=p50, p90=p90, p99=p99, max=ordered[-1])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of sorted values, interpolated linearly between the two nearest ranks."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
