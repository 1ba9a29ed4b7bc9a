"""Items of many requests into runs of the tower.

Knows token costs, turns and who still waits. Does not know what a run does.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import insort
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from shared.families.base import EncodedItem, Features
from shared.telemetry import Stopwatch

logger = logging.getLogger(__name__)

_QUEUED_BATCHES = 4
"""Decoded items that may wait, in batches' worth of tokens. Features are large; payloads wait instead."""

RunTower = Callable[[Sequence[Features]], Awaitable[list[EncodedItem]]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """An item that went through the tower, and its share of the time, in seconds."""

    item: EncodedItem
    queue_seconds: float
    encode_seconds: float


@dataclass(slots=True, eq=False)
class _Entry:
    turn: int
    features: Features
    answer: asyncio.Future[Encoded]
    waiting: Stopwatch = field(default_factory=Stopwatch)


class Batcher:
    """Runs items by their turns, as many at once as the budget takes.

    While a run goes on, what arrives makes up the next. An idle tower waits for
    company while there is some to expect, and for those whose turn is earlier:
    the LLM can do nothing with a prompt's second picture before the first.

    Args:
        run: runs the tower on a batch; answers in its order.
        max_token_count: tokens of a batch; a costlier item runs alone.
        max_wait_s: longest wait for company.
        expecting: the earliest turn of the items that are on their way, or None.
    """

    def __init__(
        self, run: RunTower, max_token_count: int, max_wait_s: float, expecting: Callable[[], int | None]
    ) -> None:
        self._run = run
        self._max_token_count = max_token_count
        self._max_wait_s = max_wait_s
        self._expecting = expecting
        self._queue: list[_Entry] = []
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self.item_count = 0
        self.run_count = 0

    def start(self) -> None:
        """Starts the loop that runs batches."""
        self._task = asyncio.create_task(self._loop())

    async def close(self) -> None:
        """Ends the loop; a run in progress is waited for by the tower's own thread."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def submit(self, features: Features, turn: int) -> asyncio.Future[Encoded]:
        """Waits for room in the queue, and returns the answer to come.

        A caller who goes cancels the answer: the item is then not run.

        Args:
            turn: the lower, the sooner; counted up over all items.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._has_room(features, turn))
            entry = _Entry(turn, features, asyncio.get_running_loop().create_future())
            insort(self._queue, entry, key=lambda queued: queued.turn)
            self._changed.notify_all()
        return entry.answer

    def _has_room(self, features: Features, turn: int) -> bool:
        # Whose turn it is must not stand behind the queue; there are no more of these than workers.
        if not self._queue or turn < self._queue[0].turn:
            return True
        return self._queued_token_count() + features.token_cost <= _QUEUED_BATCHES * self._max_token_count

    def _queued_token_count(self) -> int:
        return sum(entry.features.token_cost for entry in self._queue)

    async def _loop(self) -> None:
        while True:
            batch = await self._next_batch()
            if batch:
                await self._answer(batch)

    async def _next_batch(self) -> list[_Entry]:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._queue))
            if self._max_wait_s > 0 and not self._is_enough():
                await self._await_company()
            batch = self._take()
            self._changed.notify_all()
        return batch

    def _is_enough(self) -> bool:
        earliest = self._expecting()
        if earliest is None:
            return True
        return self._queued_token_count() >= self._max_token_count and self._queue[0].turn < earliest

    async def _await_company(self) -> None:
        try:
            async with asyncio.timeout(self._max_wait_s):
                await self._changed.wait_for(self._is_enough)
        except TimeoutError:
            return

    def _take(self) -> list[_Entry]:
        batch: list[_Entry] = []
        token_count = 0
        while self._queue:
            cost = self._queue[0].features.token_cost
            if batch and token_count + cost > self._max_token_count:
                break
            entry = self._queue.pop(0)
            # Whoever left has cancelled the answer before the tower works for nobody.
            if not entry.answer.done():
                batch.append(entry)
                token_count += cost
        return batch

    async def _answer(self, batch: list[_Entry]) -> None:
        try:
            await self._run_batch(batch)
        except Exception as fault:
            if len(batch) == 1:
                _settle_failure(batch[0], fault)
                return
            logger.warning("a batch of %d failed; its items run alone", len(batch), exc_info=fault)
            for entry in batch:
                if not entry.answer.done():
                    await self._answer([entry])

    async def _run_batch(self, batch: list[_Entry]) -> None:
        queue_seconds = [entry.waiting.seconds() for entry in batch]
        stopwatch = Stopwatch()
        items = await self._run([entry.features for entry in batch])
        encode_seconds = stopwatch.seconds()
        self.run_count += 1
        self.item_count += len(batch)
        for entry, item, waited in zip(batch, items, queue_seconds, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(Encoded(item, waited, encode_seconds))


def _settle_failure(entry: _Entry, fault: Exception) -> None:
    if not entry.answer.done():
        entry.answer.set_exception(fault)
