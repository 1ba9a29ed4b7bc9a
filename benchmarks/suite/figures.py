"""What one measurement of one case gave.

Knows the figures' names and units. Does not know how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from percept.bench import Distribution, Summary


@dataclass(frozen=True, slots=True)
class Figures:
    """Latencies in milliseconds, medians unless the name says otherwise; None where there is no such thing.

    Attributes:
        requests_per_s: answered requests per second.
        output_tokens_per_s: tokens of answers per second.
        ttft_ms: time to the first token.
        ttft_p99_ms: the same of the slowest in a hundred.
        tpot_ms: time per output token after the first.
        text_ttft_p99_ms: time to the first token of requests without pictures in a mix with others,
            slowest in a hundred.
        input_tokens: of a prompt, as the server counted.
        answered: requests that succeeded.
        failed: requests that did not.
        warnings: what a reader must know before believing the figures.
    """

    requests_per_s: float
    output_tokens_per_s: float
    ttft_ms: float | None
    ttft_p99_ms: float | None
    tpot_ms: float | None
    text_ttft_p99_ms: float | None = None
    input_tokens: float | None = None
    answered: int = 0
    failed: int = 0
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, summary: Summary) -> Self:
        """Takes what the suite compares from a run's summary."""
        overall = summary.overall
        text = summary.by_kind.get("text") if len(summary.by_kind) > 1 else None
        return cls(
            requests_per_s=overall.requests_per_s,
            output_tokens_per_s=overall.output_tokens_per_s,
            ttft_ms=_median(overall.ttft_ms),
            ttft_p99_ms=_p99(overall.ttft_ms),
            tpot_ms=_median(overall.tpot_ms),
            text_ttft_p99_ms=None if text is None else _p99(text.ttft_ms),
            input_tokens=_median(overall.input_tokens),
            answered=overall.answered,
            failed=overall.failed,
            warnings=[*summary.warnings, *(f"{count} x {error}" for error, count in overall.errors.items())],
        )

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Reads what `to_json` wrote."""
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def _median(found: Distribution | None) -> float | None:
    return None if found is None else found.p50


def _p99(found: Distribution | None) -> float | None:
    return None if found is None else found.p99
