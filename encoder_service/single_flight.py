"""One run for several callers who want the same.

Knows callers by number. Does not know what runs: the run ends when its work does,
or when the last caller has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Progress = TypeVar("Progress")
Result = TypeVar("Result")


class Flight(Generic[Progress, Result]):
    """A run in progress, or one that is over while callers still hold it.

    Attributes:
        progress: what the run tells before it has its result.
    """

    def __init__(self, task: asyncio.Task[Result], progress: Progress) -> None:
        self._task = task
        self.progress = progress
        self._caller_count = 0

    async def result(self) -> Result:
        """Waits for the run. A caller who is cancelled here does not cancel it.

        Raises:
            The run's own error, to every caller.
        """
        return await asyncio.shield(self._task)

    async def first_of(self, progress: asyncio.Future[Any]) -> None:
        """Waits until `progress` is done, or the run ended without it.

        Raises:
            The run's own error.
        """
        await asyncio.wait([self._task, progress], return_when=asyncio.FIRST_COMPLETED)
        if not progress.done():
            await self.result()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Counts a caller in, and out again; the last one out cancels the run."""
        self._caller_count += 1
        try:
            yield
        finally:
            self._caller_count -= 1
            if self._caller_count == 0:
                self._task.cancel()

    def is_over(self) -> bool:
        """True when the run has ended, or is about to because nobody wants it."""
        return self._task.done() or self._task.cancelling() > 0


class SingleFlight(Generic[Key, Progress, Result]):
    """The runs in progress by what they are for."""

    def __init__(self) -> None:
        self._flights: dict[Key, Flight[Progress, Result]] = {}

    def find(self, key: Key) -> Flight[Progress, Result] | None:
        """The run in progress for `key`, if any. A run that is over is not found."""
        flight = self._flights.get(key)
        return None if flight is None or flight.is_over() else flight

    def start(
        self, key: Key, progress: Progress, work: Callable[[], Coroutine[Any, Any, Result]]
    ) -> Flight[Progress, Result]:
        """The run in progress for `key`, or a new one of `work`.

        The caller must hold it before it next awaits.
        """
        found = self.find(key)
        if found is not None:
            return found
        task = asyncio.create_task(work())
        flight = Flight(task, progress)
        self._flights[key] = flight
        task.add_done_callback(lambda _: self._forget(key, flight, task))
        return flight

    def _forget(self, key: Key, flight: Flight[Progress, Result], task: asyncio.Task[Result]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not task.cancelled():
            # Marks an error as seen: its callers may all have gone before it.
            task.exception()
