"""A bounded queue between the task that talks to the services and the one that
talks to the client."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class FrameQueue(Generic[T]):
    """First in, first out, bounded; closed by its writer, with an error or without.

    One writer, one reader, who gets all that waits at once. What was written before the
    close is still read.
    """

    def __init__(self, bound: int) -> None:
        self._frames: list[T] = []
        self._bound = bound
        self._closed = False
        self._error: BaseException | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    async def put(self, frame: T) -> None:
        """Appends a frame; waits while the queue is full."""
        while len(self._frames) >= self._bound:
            self._writable.clear()
            await self._writable.wait()
        self._frames.append(frame)
        self._readable.set()

    def close(self, error: BaseException | None = None) -> None:
        """Ends the queue; the reader sees `error` after the last frame. The first close counts."""
        if not self._closed:
            self._closed, self._error = True, error
            self._readable.set()

    @property
    def complete(self) -> bool:
        """Whether the writer has closed it without an error."""
        return self._closed and self._error is None

    def __aiter__(self) -> FrameQueue[T]:
        return self

    async def __anext__(self) -> list[T]:
        while not self._frames:
            if self._closed:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._readable.clear()
            await self._readable.wait()
        self._writable.set()
        frames, self._frames = self._frames, []
        return frames
