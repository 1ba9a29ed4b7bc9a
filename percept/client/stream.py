"""An answer that comes piece by piece.

Knows how what is received reaches who reads. Does not know the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from percept.client.answers import Answer, AnswerCollector, Delta
from protos.llm.v1 import llm_service_pb2

Got = TypeVar("Got")
Got_co = TypeVar("Got_co", covariant=True)

# Deltas that wait for a slow reader; then flow control holds the service back.
_MAX_WAITING = 64

Receive = Callable[[llm_service_pb2.GenerateResponse], Awaitable[None]]
Fill: TypeAlias = Callable[[Callable[[Got], Awaitable[None]]], Coroutine[Any, Any, None]]


class Deltas(Protocol[Got_co]):
    """What is read one after the other, and can be left early."""

    async def __anext__(self) -> Got_co:
        """The next."""
        ...

    def __aiter__(self) -> Deltas[Got_co]: ...

    async def aclose(self) -> None:
        """Cancels what still runs."""
        ...


class FilledStream(AsyncIterator[Got]):
    """What a task comes upon. Leave it early with `aclose`, or by dropping it: the task is cancelled."""

    def __init__(self, fill: Fill[Got]) -> None:
        """
        Args:
            fill: comes upon it; must not hold the stream, which could not be dropped then.
        """
        self._queue: asyncio.Queue[Got | BaseException | None] = asyncio.Queue(_MAX_WAITING)
        self._task = asyncio.create_task(_fill(self._queue, fill))
        self._loop = asyncio.get_running_loop()
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Got:
        if self._ended:
            raise StopAsyncIteration
        got = await self._queue.get()
        if got is not None and not isinstance(got, BaseException):
            return got
        self._ended = True
        if got is not None:
            raise got
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancels what still runs."""
        self._ended = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def __del__(self) -> None:
        task = getattr(self, "_task", None)
        if task is not None and not task.done() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(task.cancel)


class DeltaStream(FilledStream[Delta]):
    """The deltas of one answer; see `FilledStream`."""

    def __init__(
        self, collector: AnswerCollector, generate: Callable[[Receive], Coroutine[Any, Any, None]]
    ) -> None:
        """
        Args:
            generate: has the request answered; every frame goes to its argument.
        """

        async def fill(put: Callable[[Delta], Awaitable[None]]) -> None:
            async def receive(frame: llm_service_pb2.GenerateResponse) -> None:
                delta = collector.take(frame)
                if delta is not None:
                    await put(delta)

            await generate(receive)

        super().__init__(fill)
        self._collector = collector

    @property
    def answer(self) -> Answer:
        """What has come so far; whole once the stream has ended."""
        return self._collector.answer


async def _fill(queue: asyncio.Queue[Got | BaseException | None], fill: Fill[Got]) -> None:
    try:
        await fill(queue.put)
    except Exception as fault:
        await queue.put(fault)
    else:
        await queue.put(None)
