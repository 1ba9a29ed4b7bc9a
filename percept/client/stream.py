"""An answer that comes piece by piece.

Knows how what is received reaches who reads. Does not know the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from percept.client.answers import Answer, AnswerCollector, Delta
from protos.llm.v1 import llm_service_pb2

Got_co = TypeVar("Got_co", covariant=True)

# Deltas that wait for a slow reader; then flow control holds the service back.
_MAX_WAITING = 64

Receive = Callable[[llm_service_pb2.GenerateResponse], Awaitable[None]]


class Deltas(Protocol[Got_co]):
    """What is read one after the other, and can be left early."""

    async def __anext__(self) -> Got_co:
        """The next."""
        ...

    def __aiter__(self) -> Deltas[Got_co]: ...

    async def aclose(self) -> None:
        """Cancels what still runs."""
        ...


class DeltaStream(AsyncIterator[Delta]):
    """The deltas of one answer. Leave it early with `aclose`, or by dropping it: the request is cancelled."""

    def __init__(
        self, collector: AnswerCollector, generate: Callable[[Receive], Coroutine[Any, Any, None]]
    ) -> None:
        """
        Args:
            generate: has the request answered; every frame goes to its argument.
        """
        self._collector = collector
        self._queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue(_MAX_WAITING)
        self._task = asyncio.create_task(_fill(self._queue, collector, generate))
        self._loop = asyncio.get_running_loop()
        self._ended = False

    @property
    def answer(self) -> Answer:
        """What has come so far; whole once the stream has ended."""
        return self._collector.answer

    def __aiter__(self) -> DeltaStream:
        return self

    async def __anext__(self) -> Delta:
        if self._ended:
            raise StopAsyncIteration
        got = await self._queue.get()
        if isinstance(got, Delta):
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


async def _fill(
    queue: asyncio.Queue[Delta | BaseException | None],
    collector: AnswerCollector,
    generate: Callable[[Receive], Coroutine[Any, Any, None]],
) -> None:
    async def receive(frame: llm_service_pb2.GenerateResponse) -> None:
        delta = collector.take(frame)
        if delta is not None:
            await queue.put(delta)

    try:
        await generate(receive)
    except Exception as fault:
        await queue.put(fault)
    else:
        await queue.put(None)
