"""How many requests are worked on at once, and what one of them may hold up.

Refuses at the door, before a body is read. Ends the answer to a client that does
not take it.
"""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.budget import ByteBudget, Holding
from gateway.errors import error_response
from gateway.metrics import Metrics
from shared.errors import OverloadedError

HOLDING = "holding"
"""Key of what a request holds of the byte budget, in its scope's state."""

_RETRY_AFTER_S = 1.0


class Admission:
    """Middleware that lets a bounded number of POST requests in.

    A request holds its place, and the bytes that it took from the budget, until it
    was answered, or its client took nothing of the answer for too long.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_count: int,
        budget: ByteBudget,
        max_media_byte_count: int,
        send_timeout_s: float,
        metrics: Metrics,
    ) -> None:
        """
        Args:
            max_count: requests at once.
            budget: bytes that all requests share.
            max_media_byte_count: bytes of one request's media.
            send_timeout_s: how long a client may let one piece of its answer wait, in seconds.
        """
        self._app = app
        self._max_count = max_count
        self._budget = budget
        self._max_media_byte_count = max_media_byte_count
        self._send_timeout_s = send_timeout_s
        self._metrics = metrics
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        if self._count >= self._max_count:
            await error_response(self._refusal())(scope, receive, send)
            return
        await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    await send(message)
            except TimeoutError:
                # An answer that is not completed makes the server close the connection.
                raise ClientDisconnect from None

        holding = Holding(self._budget, self._max_media_byte_count)
        scope.setdefault("state", {})[HOLDING] = holding
        self._count += 1
        self._metrics.requests_in_gateway.set(self._count)
        try:
            await self._app(scope, receive, send_in_time)
        finally:
            self._count -= 1
            holding.free()
            self._metrics.requests_in_gateway.set(self._count)

    def _refusal(self) -> OverloadedError:
        self._metrics.count("admission_rejections", "max_concurrent_requests")
        return OverloadedError(
            "The server is working on as many requests as it can.", retry_after=_RETRY_AFTER_S
        )
