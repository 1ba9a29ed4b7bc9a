"""Many pieces of work at once, in order, with a progress bar.

Knows how many run at a time and what becomes of failures. Does not know the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from shared.errors import PerceptError

T = TypeVar("T")


async def run_batch(
    count: int,
    work: Callable[[int], Awaitable[T]],
    *,
    concurrency: int,
    title: str | None,
    return_errors: bool,
) -> list[T | PerceptError]:
    """Runs `work(0)` to `work(count - 1)`.

    Args:
        concurrency: most that run at a time.
        title: of the progress bar; None for no bar.
        return_errors: a failure takes its result's place; else the first ends all.

    Returns:
        The results in order.

    Raises:
        PerceptError: the first failure, unless they are returned.
    """
    slots: dict[int, T | PerceptError] = {}
    left = iter(range(count))

    async def lane(advance: Callable[[], None]) -> None:
        for index in left:
            try:
                slots[index] = await work(index)
            except PerceptError as error:
                if not return_errors:
                    raise
                slots[index] = error
            advance()

    with bar(title, count) as advance:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, count)):
                    group.create_task(lane(advance))
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from None
    return [slots[index] for index in range(count)]


@contextlib.contextmanager
def bar(title: str | None, count: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, where that is a terminal; yields what moves it on by one."""
    if title is None or count < 1 or not sys.stderr.isatty():
        yield lambda: None
        return
    from percept.progress import progress_bar

    with progress_bar() as shown:
        task = shown.add_task(title, total=count)
        yield lambda: shown.advance(task)
