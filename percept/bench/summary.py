"""From records to the figures that people compare.

Knows what each figure means. Does not know how it is shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from percept.bench.checks import require
from percept.bench.records import RequestRecord, RunResult
from percept.bench.statistics import Distribution
from percept.bench.workload import Kind

LATE_MS = 10.0
"""An open loop whose sends are later than this, at p99, did not send what was drawn."""

# What differs between errors of one kind: counts and ids.
_NUMBERS = re.compile(r"\b(?=[\da-fA-F-]*\d)[\da-fA-F-]+\b")

CACHED_SHARE = 0.25
"""More of a prompt than this is no chat template: what should be fresh has been asked before."""

BUSY_SHARE = 0.5
"""A generator that takes more of a core than this measures itself."""


@dataclass(frozen=True, slots=True)
class Slo:
    """What a good request keeps, in milliseconds; None asks nothing.

    Attributes:
        ttft_ms: time to the first token.
        tpot_ms: time per output token after the first. An answer of one token keeps any.
        e2e_ms: time to the end of the answer.

    Raises:
        InvalidRequestError: a limit that nothing can keep.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
            limit = getattr(self, name)
            require(limit is None or limit > 0, name, "must be more than 0")

    def keeps(self, record: RequestRecord) -> bool:
        """Says whether a request succeeded within all limits."""
        measured = (
            (self.ttft_ms, record.ttft_s),
            (self.tpot_ms, record.tpot_s),
            (self.e2e_ms, record.e2e_s),
        )
        return record.error is None and all(
            limit is None or seconds is None or seconds * 1000 <= limit for limit, seconds in measured
        )


@dataclass(frozen=True, slots=True)
class Goodput:
    """What kept the SLO.

    Attributes:
        requests_per_s: good requests per second of the run.
        share: good requests over all that ended, failures included.
    """

    requests_per_s: float
    share: float


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """Figures of a group of requests. Latencies are of the answered ones, in milliseconds.

    Attributes:
        answered: requests that succeeded.
        failed: requests that did not.
        requests_per_s: answered requests per second of the run.
        output_tokens_per_s: tokens of answers per second of the run.
        total_tokens_per_s: tokens of prompts and answers per second of the run.
        input_tokens: of prompts, as the server counted; None where it did not.
        output_tokens: of answers.
        cached_tokens: of prompts, those that the server found in a cache; None where it did not say.
        ttft_ms: time to the first token.
        tpot_ms: time per output token after the first, one value for each request.
        itl_ms: gaps between deltas with text, of all requests together.
        e2e_ms: time to the end of the answer.
        goodput: what kept the SLO; None where there is none.
        errors: how often each failure happened, most frequent first. Texts that differ in numbers or
            ids alone are one failure, and the first of them stands for all.
    """

    answered: int
    failed: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    input_tokens: Distribution | None
    output_tokens: Distribution | None
    cached_tokens: Distribution | None
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    goodput: Goodput | None
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of a run.

    Attributes:
        overall: of all requests.
        by_kind: the same for "text" and "image" apart, where there were such requests.
        slo: that goodput is about, or None.
        warnings: what a reader must know before believing the figures.
    """

    overall: GroupSummary
    by_kind: dict[Kind, GroupSummary]
    slo: Slo | None
    warnings: list[str]


def summarise(result: RunResult, slo: Slo | None = None) -> Summary:
    """Computes a run's figures."""
    kinds = sorted({record.kind for record in result.records}, reverse=True)
    by_kind = {
        kind: _summarise_group([each for each in result.records if each.kind == kind], result.duration_s, slo)
        for kind in kinds
    }
    overall = _summarise_group(result.records, result.duration_s, slo)
    return Summary(overall, by_kind, slo, _warnings(result))


def _summarise_group(records: Sequence[RequestRecord], duration_s: float, slo: Slo | None) -> GroupSummary:
    good = [record for record in records if record.error is None]
    output_tokens = sum(record.token_count for record in good)
    input_tokens = sum(record.input_tokens or 0 for record in good)
    return GroupSummary(
        answered=len(good),
        failed=len(records) - len(good),
        requests_per_s=_rate(len(good), duration_s),
        output_tokens_per_s=_rate(output_tokens, duration_s),
        total_tokens_per_s=_rate(output_tokens + input_tokens, duration_s),
        input_tokens=Distribution.of(each.input_tokens for each in good if each.input_tokens is not None),
        output_tokens=Distribution.of(each.token_count for each in good),
        cached_tokens=Distribution.of(each.cached_tokens for each in good if each.cached_tokens is not None),
        ttft_ms=Distribution.of((each.ttft_s for each in good if each.ttft_s is not None), 1000),
        tpot_ms=Distribution.of((each.tpot_s for each in good if each.tpot_s is not None), 1000),
        itl_ms=Distribution.of((gap for each in good for gap in each.itl_s), 1000),
        e2e_ms=Distribution.of((each.e2e_s for each in good), 1000),
        goodput=None if slo is None else _goodput(records, duration_s, slo),
        errors=count_errors(records),
    )


def count_errors(records: Iterable[RequestRecord]) -> dict[str, int]:
    """How often each kind of error happened, by the first text of its kind."""
    first: dict[tuple[int | None, str], str] = {}
    counts = Counter(
        first.setdefault((record.status, _NUMBERS.sub("#", record.error)), record.error)
        for record in records
        if record.error is not None
    )
    return dict(counts.most_common())


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0


def _goodput(records: Sequence[RequestRecord], duration_s: float, slo: Slo) -> Goodput:
    kept = sum(slo.keeps(record) for record in records)
    return Goodput(_rate(kept, duration_s), kept / len(records) if records else 0.0)


def _warnings(result: RunResult) -> list[str]:
    good = [record for record in result.records if record.error is None]
    uncounted = sum(record.output_tokens is None for record in good)
    other = sum(record.token_count != result.workload.output_tokens for record in good) - uncounted
    cached = _cached_share(good)
    shape = result.workload
    fresh = not shape.repeated_prefix_tokens and not (shape.images and shape.repeated_images)
    cost = result.generator
    found = {
        f"interrupted: {result.unfinished} requests were under way and count nowhere": result.interrupted,
        f"{uncounted} answers came without token counts: each delta was taken for one token": uncounted > 0,
        f"{other} answers were not of {result.workload.output_tokens} tokens": other > 0,
        f"the server had {cached:.0%} of all prompt tokens cached, of prompts that should be fresh: has it "
        f"been asked with the seed {shape.seed} before?": fresh and cached > CACHED_SHARE,
        f"the generator fell behind: p99 of sends {cost.send_lag_p99_ms:.0f} ms late, worst "
        f"{cost.send_lag_max_ms:.0f} ms (latencies count from the time drawn)": cost.send_lag_p99_ms
        > LATE_MS,
        f"the generator took {cost.cpu_share:.0%} of a core: it may have slowed the server and blurred "
        "the times": cost.cpu_share > BUSY_SHARE,
    }
    return [text for text, holds in found.items() if holds]


def _cached_share(records: Sequence[RequestRecord]) -> float:
    prompt = sum(record.input_tokens or 0 for record in records)
    return sum(record.cached_tokens or 0 for record in records) / prompt if prompt else 0.0
