"""Several streams as one: what each gives, as it comes.

Knows asynchronous generators. Does not know what they give.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

from gateway.errors import chosen
from gateway.frames import FrameQueue
from shared.errors import PerceptError, UnavailableError

T = TypeVar("T")

# Values that wait for a slow reader; then the streams are held back.
_MAX_WAITING = 64


async def together(
    sources: Sequence[AsyncGenerator[list[T], None]], at_once: int
) -> AsyncGenerator[list[tuple[int, T]], None]:
    """Yields the values of all sources, each with its source's index, as they come.

    Leaving it closes the sources that run; those that had not begun never do.

    Args:
        at_once: most sources that run at a time, in their order.

    Raises:
        Exception: what the first source to fail raised; the others are ended.
    """
    if len(sources) == 1:
        async with aclosing(sources[0]) as values:
            async for batch in values:
                yield [(0, value) for value in batch]
        return
    queue: FrameQueue[tuple[int, T]] = FrameQueue(_MAX_WAITING)
    running = asyncio.create_task(_fill(queue, sources, at_once))
    try:
        async for pairs in queue:
            yield pairs
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _fill(
    queue: FrameQueue[tuple[int, T]], sources: Sequence[AsyncGenerator[list[T], None]], at_once: int
) -> None:
    left = iter(enumerate(sources))

    async def lane() -> None:
        for index, source in left:
            async with aclosing(source) as values:
                async for batch in values:
                    for value in batch:
                        await queue.put((index, value))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(sources))):
                group.create_task(lane())
    except ExceptionGroup as faults:
        queue.close(chosen(faults, PerceptError))
    except BaseException:
        # Whatever ends us, the reader must not wait for ever.
        queue.close(UnavailableError("the request was ended"))
        raise
    else:
        queue.close()
