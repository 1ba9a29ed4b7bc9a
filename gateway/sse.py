"""Server-sent events, and work that ends when its client leaves.

Knows the event format and ASGI's disconnect message. Does not know what the
events say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
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
    """Awaits `work` until it ends or the client leaves; then it is cancelled and awaited.

    It runs in the caller's task: one of its own takes several turns of the event loop
    to begin and to end.

    Raises:
        ClientDisconnect: the client left first.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelling, left, over = task.cancelling(), False, False

    def leave(_: object) -> None:
        nonlocal left
        if not over:
            left = True
            task.cancel()

    leaving = asyncio.ensure_future(_left(receive))
    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        # Another's cancellation goes before ours, as in asyncio.timeout.
        if left and task.cancelling() == cancelling + 1:
            raise ClientDisconnect from None
        raise
    finally:
        over = True
        leaving.cancel()
        if left:
            task.uncancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStreamResponse(Response):
    """Streams JSON values as events, then `[DONE]`.

    Nothing is sent before the first event: what fails until then is raised, to be answered
    with its own status. A later error is an event of its own. The source is closed on every
    way out.
    """

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[Sequence[Any], None]) -> None:
        """
        Args:
            source: values that can be sent at once, at least one each time.
        """
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._source):
            await while_connected(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        first = await anext(self._source)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await _send_events(send, first)
            async for contents in self._source:
                await _send_events(send, contents)
        except ClientDisconnect:
            raise  # It takes nothing any more, no error either.
        except Exception as fault:
            await _send_events(send, [error_body(as_percept_error(fault))])
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})


async def _send_events(send: Send, contents: Sequence[Any]) -> None:
    body = b"".join(map(event, contents))
    await send({"type": "http.response.body", "body": body, "more_body": True})
