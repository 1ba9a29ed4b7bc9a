"""The bounded queue between two tasks."""

from __future__ import annotations

import asyncio

import pytest

from gateway.frames import FrameQueue


async def test_order_bound_and_end() -> None:
    queue: FrameQueue[int] = FrameQueue(2)
    most = 0

    async def write() -> None:
        for number in range(10):
            await queue.put(number)
        queue.close()

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.01)
    assert not writing.done()
    seen = []
    async for number in queue:
        most = max(most, len(queue._frames))
        seen.append(number)
    assert seen == list(range(10))
    assert most <= 2


async def test_error_comes_after_what_was_written() -> None:
    queue: FrameQueue[int] = FrameQueue(2)
    await queue.put(1)
    queue.close(ValueError("broken"))
    seen = []
    with pytest.raises(ValueError, match="broken"):
        async for number in queue:
            seen.append(number)
    assert seen == [1]


async def test_reader_that_waits_sees_the_end() -> None:
    queue: FrameQueue[int] = FrameQueue(2)
    reading = asyncio.create_task(anext(queue, None))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    queue.close()
    assert await reading is None
