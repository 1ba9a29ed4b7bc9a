"""The bars: what must hold, what would be better still, and whether it does.

Knows each bar's figure and where it comes from. Does not know how a figure was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.suite.ratios import Spread
from benchmarks.suite.results import Results

Verdict = Literal["stretch met", "met", "not met", "not measured"]


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that must hold.

    Attributes:
        what: in words.
        find: takes its value from the results; None where it was not measured.
        bar: the limit.
        stretch: the better one, or None.
        at_most: the value must not exceed the limit; otherwise it must reach it.
        unit: behind the number; ratios have none.
    """

    what: str
    find: Callable[[Results], Spread | None]
    bar: float
    stretch: float | None = None
    at_most: bool = True
    unit: str = ""

    def judge(self, results: Results) -> Judged:
        """Compares the value with the bar."""
        value = self.find(results)
        return Judged(self, value, self._verdict(value))

    def _verdict(self, value: Spread | None) -> Verdict:
        if value is None:
            return "not measured"
        if self.stretch is not None and self._holds(value.median, self.stretch):
            return "stretch met"
        return "met" if self._holds(value.median, self.bar) else "not met"

    def _holds(self, value: float, limit: float) -> bool:
        return value <= limit if self.at_most else value >= limit


@dataclass(frozen=True, slots=True)
class Judged:
    """A bar with its value.

    Attributes:
        bar: what was asked.
        value: what was found, or None.
        verdict: whether it holds, by the median.
    """

    bar: Bar
    value: Spread | None
    verdict: Verdict

    @property
    def is_clear(self) -> bool:
        """The whole spread lies on the same side of the bar."""
        if self.value is None:
            return True
        return not self.value.low <= self.bar.bar <= self.value.high or self.value.low == self.value.high

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "what": self.bar.what,
            "bar": self.bar.bar,
            "stretch": self.bar.stretch,
            "at_most": self.bar.at_most,
            "unit": self.bar.unit,
            "value": None if self.value is None else self.value.to_json(),
            "verdict": self.verdict,
            "clear": self.is_clear,
        }


def over_vllm(case: str, name: str) -> Callable[[Results], Spread | None]:
    """A figure of `percept up` over vLLM's."""
    return lambda results: results.ratio("percept", "vllm", case, name)


def program(name: str, *keys: str) -> Callable[[Results], Spread | None]:
    """A figure of one of Percept's own measurements, under the first of the keys that is there."""

    def find(results: Results) -> Spread | None:
        figures = results.programs.get(name, {})
        found = next((figures[key] for key in keys if key in figures), None)
        if isinstance(found, dict):
            return Spread.of_quartiles(found)
        return None if found is None else Spread.of([float(found)])

    return find


def own_share(results: Results) -> Spread | None:
    """The engine's own time for a step of many sequences, in per cent of the least that it takes here."""
    found = results.programs.get("engine_cost", {}).get("step_us")
    least_ms = results.floors.get("busy_decode_ms")
    if found is None or not least_ms:
        return None
    own = Spread.of_quartiles(found)
    median, low, high = (us / (10 * least_ms) for us in (own.median, own.low, own.high))
    return Spread(median, low, high, own.count)


BARS: Sequence[Bar] = (
    Bar("decode, concurrency 1: TPOT, Percept / vLLM", over_vllm("text-1", "tpot_ms"), 0.9, 0.7),
    Bar("text throughput at 16, Percept / vLLM", over_vllm("text-16", "requests_per_s"), 1.1, 1.4, False),
    Bar("image throughput at 16, Percept / vLLM", over_vllm("image-16", "requests_per_s"), 1.1, 1.5, False),
    Bar("image TTFT at concurrency 1, Percept / vLLM", over_vllm("image-1", "ttft_ms"), 0.9, 0.7),
    Bar(
        "TTFT of a repeated image / of as many text tokens, prefix cached",
        program("repeats", "ratio", "ttft_ratio"),
        1.15,
        1.05,
    ),
    Bar(
        "text-only p99 TTFT while images arrive, Percept / vLLM",
        over_vllm("mixed", "text_ttft_p99_ms"),
        0.5,
        0.2,
    ),
    Bar("two images: TTFT, rows streamed / behind a barrier", program("overlap", "ratio"), 0.85),
    Bar("identical images at once: tower runs", program("repeats", "tower_runs"), 1.0),
    Bar(
        "gateway and gRPC over the engine in process, p50",
        program("overhead", "overhead_ms"),
        3.0,
        1.5,
        unit=" ms",
    ),
    Bar("engine's own time for a step of 256 sequences, of the step's floor", own_share, 5.0, unit="%"),
    Bar("embedding transfer / raw gRPC stream, speed", program("transfer", "speed_ratio"), 0.85, None, False),
    Bar(
        "embedding transfer in shared memory / raw gRPC stream, speed",
        program("transfer", "shared_speed_ratio"),
        2.0,
        None,
        False,
    ),
    Bar(
        "`percept up` with percept-tiny to the first answer",
        program("start_time", "first_answer_s"),
        20,
        8,
        unit=" s",
    ),
)


def judge_all(results: Results) -> list[Judged]:
    """All bars with their values."""
    return [bar.judge(results) for bar in BARS]
