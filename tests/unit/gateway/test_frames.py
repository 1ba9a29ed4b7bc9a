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
    async for numbers in queue:
        most = max(most, len(numbers))
        seen += numbers
    assert seen == list(range(10))
    assert most <= 2


async def test_error_comes_after_what_was_written() -> None:
    queue: FrameQueue[int] = FrameQueue(2)
    await queue.put(1)
    queue.close(ValueError("broken"))
    seen = []
    with pytest.raises(ValueError, match="broken"):
        async for numbers in queue:
            seen += numbers
    assert seen == [1]


async def test_reader_that_waits_sees_the_end() -> None:
    queue: FrameQueue[int] = FrameQueue(2)
    reading = asyncio.create_task(anext(queue, None))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    queue.close()
    assert await reading is None


async def test_only_the_first_close_counts() -> None:
    whole: FrameQueue[int] = FrameQueue(2)
    assert not whole.complete
    whole.close()
    whole.close(ValueError("late"))
    assert whole.complete
    assert [frames async for frames in whole] == []
    broken: FrameQueue[int] = FrameQueue(2)
    broken.close(ValueError("broken"))
    broken.close()
    assert not broken.complete
