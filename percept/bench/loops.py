"""The two ways to send: when one has been answered, or when it is due.

Knows when. Does not know what is sent or what becomes of the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from percept.bench.bodies import Prepared
from percept.bench.feed import BodyFeed

Ask = Callable[[Prepared, float | None], Awaitable[None]]
"""Sends one request that was due at a time (None: now), and writes down what became of it."""


async def closed_loop(feed: BodyFeed, ask: Ask, concurrency: int, is_over: Callable[[], bool]) -> None:
    """Keeps so many requests under way until the feed ends, or no more shall be sent."""

    async def keep_one_under_way() -> None:
        while not is_over() and (prepared := await feed.next()) is not None:
            await ask(prepared, None)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(keep_one_under_way())


async def open_loop(feed: BodyFeed, ask: Ask, due_s: Sequence[float], now: Callable[[], float]) -> None:
    """Sends each request when it is due, whatever became of those before."""

    async def start(prepared: Prepared, due: float) -> None:
        await ask(prepared, due)

    async with asyncio.TaskGroup() as group:
        for due in due_s:
            prepared = await feed.next()
            assert prepared is not None, "the feed has a body for each due time"
            await asyncio.sleep(max(0.0, due - now()))
            group.create_task(start(prepared, due))


async def until_stopped(work: Coroutine[Any, Any, None], stop: asyncio.Event | None) -> bool:
    """Runs `work` to its end, or until `stop` is set. Says whether it was stopped."""
    working = asyncio.ensure_future(work)
    if stop is None:
        await working
        return False
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopped = not working.done()
    finally:
        stopping.cancel()
        working.cancel()
        await asyncio.wait([working, stopping])
    if not working.cancelled():
        working.result()
    return stopped
