"""One run from probe to result.

Knows the order of things: find the model, count words, build bodies, warm up, run the
clock. Does not know what the figures mean.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

from percept.bench.asking import Asker
from percept.bench.bodies import BodyBuilder, Prepared
from percept.bench.connection import Connections
from percept.bench.feed import AHEAD_COUNT, BodyFeed
from percept.bench.load import Load
from percept.bench.loops import closed_loop, open_loop, until_stopped
from percept.bench.own_cost import CostMeter
from percept.bench.probe import measure_scale, with_model
from percept.bench.prompts import TextScale
from percept.bench.records import RequestRecord, RunResult
from percept.bench.target import Target
from percept.bench.workload import Workload

ENDLESS_AHEAD = 64
"""Bodies built before the clock where nobody knows how many there will be, for each one under way."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        phase: "probing", "building", "warming up" or "measuring".
        done: requests of this phase that ended.
        total: how many there will be, or None.
        elapsed_s: seconds on the run's clock; 0 before it starts.
        failed: of those that ended.
        output_tokens: of answers so far.
    """

    phase: str
    done: int = 0
    total: int | None = None
    elapsed_s: float = 0.0
    failed: int = 0
    output_tokens: int = 0


Report = Callable[[Progress], None]


async def run_load(
    target: Target,
    workload: Workload,
    load: Load,
    *,
    on_progress: Report | None = None,
    stop: asyncio.Event | None = None,
    calibrate: bool = True,
) -> RunResult:
    """Puts a target under load and records every request.

    Args:
        target: who is asked.
        workload: what.
        load: when, and for how long.
        on_progress: called with each phase and after each request, on the event loop: keep it short.
        stop: set, it ends the run; what ended before is in the result.
        calibrate: asks two short questions first to learn how many tokens a word makes. Without, a
            word counts as one token and the chat template as none.

    Raises:
        BenchError: the target cannot be asked at all. Requests that fail are records, not errors.
    """
    report = on_progress or (lambda _: None)
    report(Progress("probing"))
    target = await with_model(target)
    with closing(Connections(target)) as connections:
        asker = Asker(connections, target.timeout_s)
        scale = await measure_scale(asker, target, workload.seed) if calibrate else TextScale()
        run = _Run(target, workload, load, connections, BodyBuilder(target, workload, scale), report)
        interrupted = await until_stopped(run.run(), stop)
        return run.result(interrupted)


class _Run:
    """What one run holds while it goes on."""

    def __init__(
        self,
        target: Target,
        workload: Workload,
        load: Load,
        connections: Connections,
        builder: BodyBuilder,
        report: Report,
    ) -> None:
        self._target, self._workload, self._load = target, workload, load
        self._connections, self._builder, self._report = connections, builder, report
        self._phase, self._under_way = "building", 0
        self._meter = CostMeter()
        self._started_at = ""

    def _begin(self, phase: str, total: int | None) -> None:
        """Starts a phase: its own clock, records and counts."""
        self._phase, self._total = phase, total
        self._asker = Asker(self._connections, self._target.timeout_s)
        self._records: list[RequestRecord] = []
        self._failed = self._output_tokens = self._under_way = 0
        self._tell()

    async def run(self) -> None:
        """Warms up, then measures."""
        indices, ahead = self._indices()
        self._report(Progress("building", total=self._load.total))
        with BodyFeed(self._builder.build, indices, ahead) as feed:
            await self._warm_up()
            # Whatever is built after this is built beside the server's work.
            await feed.filled()
            await self._measure(feed)

    def _indices(self) -> tuple[Iterable[int], int]:
        """Which requests may be sent, and how many are built before."""
        load, total = self._load, self._load.total
        if total is not None:
            return range(total), AHEAD_COUNT
        count = itertools.count() if load.requests is None else range(load.requests)
        return count, ENDLESS_AHEAD * (load.concurrency or 1)

    async def _warm_up(self) -> None:
        count = warmup_count(self._workload, self._load)
        self._begin("warming up", count)
        with BodyFeed(self._builder.build, range(-1, -1 - count, -1), count) as feed:
            await closed_loop(feed, self._ask, min(count, self._load.concurrency or 1), lambda: False)

    async def _measure(self, feed: BodyFeed) -> None:
        load = self._load
        due_s = load.arrival_times() if load.rate is not None else []
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._begin("measuring", load.total)
        async with self._meter:
            if load.concurrency is not None:
                await closed_loop(feed, self._ask, load.concurrency, self._is_over)
            else:
                await open_loop(feed, self._ask, due_s, self._asker.now)

    def _is_over(self) -> bool:
        return self._load.duration_s is not None and self._asker.now() >= self._load.duration_s

    async def _ask(self, prepared: Prepared, due_s: float | None) -> None:
        self._under_way += 1
        record = await self._asker.ask(prepared, due_s)
        self._under_way -= 1
        self._records.append(record)
        self._failed += record.error is not None
        self._output_tokens += record.token_count
        self._tell()

    def _tell(self) -> None:
        self._report(
            Progress(
                self._phase,
                len(self._records),
                self._total,
                self._asker.now(),
                self._failed,
                self._output_tokens,
            )
        )

    def result(self, interrupted: bool) -> RunResult:
        """What was measured. A run that was interrupted while it warmed up has measured nothing."""
        measured = self._phase == "measuring"
        records = self._records if measured else []
        return RunResult(
            name=self._target.name or self._target.model,
            url=self._target.base_url,
            model=self._target.model,
            workload=self._workload,
            load=self._load,
            records=records,
            duration_s=max((record.end_s for record in records), default=0.0),
            unfinished=self._under_way if measured else 0,
            interrupted=interrupted,
            started_at=self._started_at,
            generator=self._meter.cost(records),
        )


def warmup_count(workload: Workload, load: Load) -> int:
    """Requests before the clock: each repeated picture is in one of them, if there are any."""
    if not load.warmup:
        return 0
    repeated = -(-workload.repeated_images // workload.images) if workload.images else 0
    return max(load.warmup, repeated)
