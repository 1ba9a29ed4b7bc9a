"""How many requests are worked on at once. Refuses at the door, before a body is read."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import error_response
from gateway.metrics import Metrics
from shared.errors import OverloadedError

_RETRY_AFTER_S = 1.0


class Admission:
    """Middleware that lets a bounded number of POST requests in."""

    def __init__(self, app: ASGIApp, bound: int, metrics: Metrics) -> None:
        self._app = app
        self._bound = bound
        self._metrics = metrics
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        if self._count >= self._bound:
            self._metrics.rejections.labels(self._metrics.model, "max_concurrent_requests").inc()
            refusal = OverloadedError(
                "The server is working on as many requests as it can.", retry_after=_RETRY_AFTER_S
            )
            await error_response(refusal)(scope, receive, send)
            return
        self._count += 1
        self._metrics.requests_in_gateway.set(self._count)
        try:
            await self._app(scope, receive, send)
        finally:
            self._count -= 1
            self._metrics.requests_in_gateway.set(self._count)
