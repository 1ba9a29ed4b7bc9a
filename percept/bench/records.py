"""What happened: one record for each request, and what the generator itself cost.

Knows raw times. Does not know percentiles: `summary` does.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from percept.bench.load import Load
from percept.bench.workload import Kind, Workload


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are seconds after the run's start.

    Attributes:
        index: its place in the workload.
        kind: "text" or "image".
        scheduled_s: when it was due. Latencies count from here: in an open loop a generator that is
            late is no excuse for the server. In a closed loop the same as `sent_s`.
        sent_s: when its first byte was written.
        end_s: when its answer was complete, or had failed.
        delta_times_s: when each delta with text arrived. One delta may carry several tokens; deltas
            that arrived in one read of the socket have the same time.
        input_tokens: of the prompt, counted by the server; None where it did not say.
        output_tokens: of the answer, counted by the server; None where it did not say.
        cached_tokens: of the prompt, those that the server did not have to compute; None where it
            did not say.
        finish_reason: the server's.
        status: of HTTP; None where there was no answer.
        error: what went wrong, or None.
    """

    index: int
    kind: Kind
    scheduled_s: float
    sent_s: float
    end_s: float
    delta_times_s: list[float] = field(default_factory=list)
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    status: int | None = None
    error: str | None = None

    @property
    def token_count(self) -> int:
        """Tokens of the answer; its deltas where the server did not count."""
        return len(self.delta_times_s) if self.output_tokens is None else self.output_tokens

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token: from when the request was due to the first delta with text."""
        return self.delta_times_s[0] - self.scheduled_s if self.delta_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: last delta minus first, over tokens - 1."""
        if self.token_count < 2 or not self.delta_times_s:
            return None
        return (self.delta_times_s[-1] - self.delta_times_s[0]) / (self.token_count - 1)

    @property
    def itl_s(self) -> list[float]:
        """Inter-token latencies: the gaps between deltas with text."""
        return [after - before for before, after in itertools.pairwise(self.delta_times_s)]

    @property
    def e2e_s(self) -> float:
        """From when the request was due to the end of its answer."""
        return self.end_s - self.scheduled_s


@dataclass(frozen=True, slots=True)
class GeneratorCost:
    """What the generator took from the machine, and how punctual it was, while it measured.

    Attributes:
        cpu_s: CPU seconds of its process.
        wall_s: seconds on the clock.
        loop_lag_p99_ms: how late its event loop ran a regular timer; what it adds to a time stamp.
        loop_lag_max_ms: the worst of these.
        send_lag_p99_ms: how late requests of an open loop were sent; 0 in a closed one.
        send_lag_max_ms: the worst of these.
    """

    cpu_s: float
    wall_s: float
    loop_lag_p99_ms: float
    loop_lag_max_ms: float
    send_lag_p99_ms: float
    send_lag_max_ms: float

    @property
    def cpu_share(self) -> float:
        """CPU seconds per second: 1 is a whole core."""
        return self.cpu_s / self.wall_s if self.wall_s else 0.0


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run.

    Attributes:
        name: of the target.
        url: of the target.
        model: that answered.
        workload: what was asked.
        load: how.
        records: of the requests that ended, in the order of their end.
        duration_s: from the first request's time to the last answer's end.
        unfinished: requests that were under way when the run was interrupted. They count nowhere.
        interrupted: the run was ended before its time.
        started_at: date and time of its start, ISO 8601, UTC.
        generator: its own cost.
    """

    name: str
    url: str
    model: str
    workload: Workload
    load: Load
    records: list[RequestRecord]
    duration_s: float
    unfinished: int
    interrupted: bool
    started_at: str
    generator: GeneratorCost
