"""Server-sent events, and work that ends when its client leaves.

Knows the event format and ASGI's disconnect message. Does not know what the
events say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import as_percept_error, error_body

T = TypeVar("T")

_DONE = b"data: [DONE]\n\n"


def event(content: Any) -> bytes:
    """One event that carries a JSON value."""
    return b"data: " + to_json(content) + b"\n\n"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` until it ends or the client leaves; then it is cancelled and awaited.

    Raises:
        ClientDisconnect: the client left first.
    """
    running = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ClientDisconnect
        return running.result()
    finally:
        for task in (leaving, running):
            task.cancel()
        # Its `finally` blocks free what it holds before we go on.
        await asyncio.gather(running, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStreamResponse(Response):
    """Streams JSON values as events, then `[DONE]`.

    An error after the first event is an event of its own. The source is closed on
    every way out.
    """

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[Any, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._source):
            await while_connected(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for content in self._source:
                await send({"type": "http.response.body", "body": event(content), "more_body": True})
        except ClientDisconnect:
            raise  # It takes nothing any more, no error either.
        except Exception as fault:
            body = event(error_body(as_percept_error(fault)))
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})
