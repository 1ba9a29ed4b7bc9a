"""What the generator itself takes, measured while it measures.

Knows this process and its event loop. A generator that is short of CPU reads the
clock late, and its figures are then its own and not the server's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType

from percept.bench.records import GeneratorCost, RequestRecord
from percept.bench.statistics import Distribution

TICK_S = 0.05


class CostMeter:
    """Measures between entering and leaving. An async context manager."""

    def __init__(self) -> None:
        self._lags_s: list[float] = []
        self._cpu_s = self._wall_s = 0.0

    async def __aenter__(self) -> CostMeter:
        self._cpu_s, self._wall_s = -time.process_time(), -time.perf_counter()
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cpu_s += time.process_time()
        self._wall_s += time.perf_counter()
        self._ticking.cancel()
        await asyncio.wait([self._ticking])

    async def _tick(self) -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            self._lags_s.append(max(0.0, time.perf_counter() - due))

    def cost(self, records: Iterable[RequestRecord]) -> GeneratorCost:
        """What was measured, and how late the requests of `records` were sent."""
        loop_p99, loop_max = _p99_and_max(self._lags_s)
        send_p99, send_max = _p99_and_max(each.sent_s - each.scheduled_s for each in records)
        return GeneratorCost(
            cpu_s=round(self._cpu_s, 4),
            wall_s=round(self._wall_s, 4),
            loop_lag_p99_ms=loop_p99,
            loop_lag_max_ms=loop_max,
            send_lag_p99_ms=send_p99,
            send_lag_max_ms=send_max,
        )


def _p99_and_max(lags_s: Iterable[float]) -> tuple[float, float]:
    lags = Distribution.of(lags_s, 1000)
    return (round(lags.p99, 3), round(lags.max, 3)) if lags else (0.0, 0.0)
