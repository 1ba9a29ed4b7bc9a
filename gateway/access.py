"""One log line and one id for each request, and an answer to every fault.

Knows requests from outside: method, path, status, time. Does not know what they ask.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.body import CLOSE
from gateway.errors import error_response
from gateway.metrics import Metrics
from shared.errors import UnavailableError
from shared.telemetry import Stopwatch

logger = logging.getLogger("gateway.access")

REQUEST_ID = "request_id"
"""Key of a request's id in its scope's state."""

_ID_HEADER = "X-Request-Id"
_ID_PATTERN = re.compile(r"[\x21-\x7e]{1,128}")
# What nginx logs for a client that left before it was answered.
_CLIENT_LEFT = 499
# Any other method is the client's own text, which must not name a series.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET_PATHS = frozenset({"/health", "/ping", "/metrics"})


class AccessLog:
    """Outermost middleware: names, times, counts and logs requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, send)
        try:
            await visit.serve(self._app, receive)
        finally:
            visit.log(self._metrics)


class _Visit:
    """One request, from its first byte to its last."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._watch = Stopwatch()
        self._status = _CLIENT_LEFT
        self._started = False
        given = Headers(scope=scope).get(_ID_HEADER, "")
        self._id = given if _ID_PATTERN.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})[REQUEST_ID] = self._id

    async def serve(self, app: ASGIApp, receive: Receive) -> None:
        try:
            await app(self._scope, receive, self._answer)
        except ClientDisconnect:
            self._status = _CLIENT_LEFT
        except asyncio.CancelledError:
            # Nothing else cancels a request out here: the server ends, and waits no longer.
            if self._started:
                raise
            response = error_response(UnavailableError("The gateway is shutting down."))
            await response(self._scope, receive, self._answer)
        except Exception as fault:
            response = error_response(fault)
            if not self._started:
                await response(self._scope, receive, self._answer)

    async def _answer(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[_ID_HEADER] = self._id
            if self._scope["state"].get(CLOSE):
                headers["Connection"] = "close"
        await self._send(message)

    def log(self, metrics: Metrics) -> None:
        method, seconds = self._scope["method"], self._watch.seconds()
        route = getattr(self._scope.get("route"), "path", "unknown")
        if route not in _QUIET_PATHS:
            label = method if method in _METHODS else "other"
            metrics.request(label, route, str(self._status), seconds)
        level = logging.DEBUG if route in _QUIET_PATHS else logging.INFO
        path = self._scope["path"].encode("unicode_escape").decode()[:256]
        logger.log(level, "%s %s %d %.3fs id=%s", method, path, self._status, seconds, self._id)
