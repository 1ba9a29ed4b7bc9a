"""A bounded number of places for work of very different sizes: the small need not wait for the large.

Whoever waits is due some time after it came, the later the larger it is, and of all that wait the one that
is due first gets the next place: small work passes large work that came shortly before it, and nothing is
passed for ever. Knows sizes. Does not know the work.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairPlaces:
    """Places for work on bytes. Belongs to one event loop."""

    def __init__(self, count: int, bytes_per_second: float) -> None:
        """Args:
        count: places, at least 1.
        bytes_per_second: work of so many bytes lets pass what comes within a second and is smaller.
        """
        self._free = count
        self._rate = bytes_per_second
        self._numbers = itertools.count()
        # By when they are due, then by arrival. A waiter that has left is done and passed over.
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def place(self, byte_count: int) -> AsyncIterator[None]:
        """Waits for a place, and holds it inside the block."""
        await self._enter(byte_count)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, byte_count: int) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        due = time.monotonic() + byte_count / self._rate
        heapq.heappush(self._waiting, (due, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # Given the place in the moment of leaving.
                self._leave()
            raise

    def _leave(self) -> None:
        """The place goes to whoever is due first."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
