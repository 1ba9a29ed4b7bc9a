"""Who may ask. Knows keys and the Bearer scheme; does not know what is asked."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import error_response
from shared.errors import UnauthorizedError

# Everything else needs a key, also what does not exist: a path that is spelled
# in an unforeseen way must not slip past.
_OPEN_PATHS = frozenset({"/health", "/ping", "/version", "/metrics", "/openapi.json"})


class KeyCheck:
    """Middleware that refuses requests without a valid key. Without keys it refuses none."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in _OPEN_PATHS:
            given = Headers(scope=scope).get("authorization", "")
            if not self._is_valid(given):
                await error_response(_refusal(given))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_valid(self, header: str) -> bool:
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer":
            return False
        digest = _digest(key.strip().encode("utf-8", "surrogateescape"))
        # All are compared, each in constant time: time says nothing about any of them.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _refusal(given: str) -> UnauthorizedError:
    if not given:
        return UnauthorizedError(
            "You didn't provide an API key. Send it in an Authorization header: 'Bearer YOUR_KEY'.",
            code="missing_api_key",
        )
    return UnauthorizedError("Incorrect API key provided.")
