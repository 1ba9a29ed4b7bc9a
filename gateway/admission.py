"""How many requests, and how many bytes of them, are worked on at once.

Refuses at the door: requests before their body is read, bodies while they arrive.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import error_response
from gateway.metrics import Metrics
from shared.errors import OverloadedError

_RETRY_AFTER_S = 1.0


class Admission:
    """Middleware that lets a bounded number of POST requests in.

    A request holds its place, and the bytes of its body, until it was answered.
    """

    def __init__(self, app: ASGIApp, *, max_count: int, max_byte_count: int, metrics: Metrics) -> None:
        self._app = app
        self._max_count = max_count
        self._max_byte_count = max_byte_count
        self._metrics = metrics
        self._count = 0
        self._byte_count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        if self._count >= self._max_count:
            await error_response(self._refusal("max_concurrent_requests"))(scope, receive, send)
            return
        await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = 0

        async def receive_counted() -> Message:
            nonlocal held
            message = await receive()
            size = len(message.get("body", b""))
            if self._byte_count + size > self._max_byte_count:
                raise self._refusal("max_total_body")
            self._byte_count += size
            held += size
            return message

        self._count += 1
        self._metrics.requests_in_gateway.set(self._count)
        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._count -= 1
            self._byte_count -= held
            self._metrics.requests_in_gateway.set(self._count)

    def _refusal(self, reason: str) -> OverloadedError:
        self._metrics.count("admission_rejections", reason)
        return OverloadedError(
            "The server is working on as many requests as it can.", retry_after=_RETRY_AFTER_S
        )
