"""Items of many requests into runs of the tower.

Knows token costs, turns and who still waits. Does not know what a run does.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import insort
from collections import deque
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
    """An item, or a part of one, that went through the tower, and its share of the time, in seconds."""

    item: EncodedItem
    queue_seconds: float
    encode_seconds: float


@dataclass(slots=True, eq=False)
class _Part:
    """What goes into one run.

    Attributes:
        later: the item's parts that are still to run; without this one while it runs.
    """

    features: Features
    answer: asyncio.Future[Encoded]
    is_last: bool
    later: deque[_Part]
    waiting: Stopwatch = field(default_factory=Stopwatch)


@dataclass(slots=True, eq=False)
class _Entry:
    """An item in the queue.

    Attributes:
        turn: the item's own.
        place: where it stands in the queue: its turn at first, later that of others.
        parts: those that are still to run, in order.
    """

    turn: int
    place: int
    parts: deque[_Part]

    @property
    def token_count(self) -> int:
        """Tokens of the part that is next."""
        return self.parts[0].features.token_cost


class Batcher:
    """Runs items by their turns, as many at once as the budget takes.

    While a run goes on, what arrives makes up the next. An idle tower waits for
    company while there is some to expect, and for those whose turn is earlier:
    the LLM can do nothing with a prompt's second picture before the first.

    An item in parts goes to the queue's end after each of them, so that a long
    video holds up those who come after it by one part, not by all. Whoever comes
    later stands behind the part that waits there. No run has two parts of an item:
    the rows of the first would wait for the second.

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

    async def submit(self, parts: Sequence[Features], turn: int) -> list[asyncio.Future[Encoded]]:
        """Waits for room in the queue, and returns the answers to come, one for each part.

        A caller who goes cancels all of them: what has not run is then not run.

        Args:
            parts: those of one item, in order; at least one.
            turn: the lower, the sooner; counted up over all items.
        """
        loop = asyncio.get_running_loop()
        waiting: deque[_Part] = deque()
        for part in parts:
            waiting.append(_Part(part, loop.create_future(), part is parts[-1], waiting))
        answers = [part.answer for part in waiting]
        entry = _Entry(turn, turn, waiting)
        async with self._changed:
            await self._changed.wait_for(lambda: self._has_room(entry))
            self._enqueue(entry)
            self._changed.notify_all()
        return answers

    def _enqueue(self, entry: _Entry) -> None:
        entry.parts[0].waiting = Stopwatch()
        insort(self._queue, entry, key=lambda queued: queued.place)

    def _has_room(self, entry: _Entry) -> bool:
        # Whose turn it is must not stand behind the queue; there are no more of these than workers.
        if not self._queue or entry.place < self._queue[0].place:
            return True
        return self._queued_token_count() + entry.token_count <= _QUEUED_BATCHES * self._max_token_count

    def _queued_token_count(self) -> int:
        return sum(entry.token_count for entry in self._queue)

    async def _loop(self) -> None:
        while True:
            batch = await self._next_batch()
            if batch:
                await self._answer(batch)

    async def _next_batch(self) -> list[_Part]:
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

    def _take(self) -> list[_Part]:
        batch: list[_Part] = []
        unfinished: list[_Entry] = []
        token_count = 0
        while self._queue:
            cost = self._queue[0].token_count
            if batch and token_count + cost > self._max_token_count:
                break
            entry = self._queue.pop(0)
            # Whoever left has cancelled the answers before the tower works for nobody.
            if entry.parts[0].answer.done():
                continue
            batch.append(entry.parts.popleft())
            token_count += cost
            if entry.parts:
                unfinished.append(entry)
        for entry in unfinished:
            self._to_the_end(entry)
        return batch

    def _to_the_end(self, entry: _Entry) -> None:
        if self._queue:
            entry.place = max(entry.place, self._queue[-1].place)
        self._enqueue(entry)

    async def _answer(self, batch: list[_Part]) -> None:
        try:
            await self._run_batch(batch)
        except Exception as fault:
            if len(batch) == 1:
                _settle_failure(batch[0], fault)
                return
            logger.warning("a batch of %d failed; its items run alone", len(batch), exc_info=fault)
            for part in batch:
                if not part.answer.done():
                    await self._answer([part])

    async def _run_batch(self, batch: list[_Part]) -> None:
        queue_seconds = [part.waiting.seconds() for part in batch]
        stopwatch = Stopwatch()
        items = await self._run([part.features for part in batch])
        encode_seconds = stopwatch.seconds()
        self.run_count += 1
        self.item_count += sum(part.is_last for part in batch)
        for part, item, waited in zip(batch, items, queue_seconds, strict=True):
            if not part.answer.done():
                part.answer.set_result(Encoded(item, waited, encode_seconds))


def _settle_failure(part: _Part, fault: Exception) -> None:
    # At once, as the next run begins before anyone has heard of this.
    for later in part.later:
        later.answer.cancel()
    if not part.answer.done():
        part.answer.set_exception(fault)
