"""Reads a request's JSON body under limits.

Knows HTTP bodies and JSON. Does not know what a body means.
"""

from __future__ import annotations

import asyncio

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from shared.errors import InvalidRequestError, MediaTooLargeError, UnsupportedMediaError

# Parsed on the event loop up to this size; above it in a thread.
_INLINE_SIZE = 64 * 1024
# A body over the limit is read on for this long and thrown away, so that a
# client that writes all before it reads gets to see the answer.
_DISCARD_S = 5.0


async def read_json(request: Request, max_byte_count: int) -> object:
    """Returns the parsed JSON body.

    Raises:
        UnsupportedMediaError: the Content-Type is not JSON.
        MediaTooLargeError: the body is over the limit; checked while it arrives.
        InvalidRequestError: no valid JSON, or nested too deeply.
        ClientDisconnect: the client left before the body was complete.
    """
    _check_content_type(request.headers.get("content-type", ""))
    body = await _read(request, max_byte_count)
    if len(body) <= _INLINE_SIZE:
        return _parse(body)
    return await asyncio.to_thread(_parse, body)


def _check_content_type(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaError(
            "The Content-Type of the request must be application/json.", code="unsupported_content_type"
        )


async def _read(request: Request, max_byte_count: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_byte_count:
        raise await _refuse(request, max_byte_count)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_byte_count:
            body.clear()
            raise await _refuse(request, max_byte_count)
    return bytes(body)


async def _refuse(request: Request, max_byte_count: int) -> MediaTooLargeError:
    """Discards what still comes, for a while, and returns the error."""
    try:
        async with asyncio.timeout(_DISCARD_S):
            while (message := await request.receive())["type"] == "http.request":
                if not message.get("more_body"):
                    break
    except (TimeoutError, ClientDisconnect):
        pass  # The client is slow or gone; the answer is written all the same.
    return MediaTooLargeError(
        f"The request body is larger than {max_byte_count} bytes.", code="request_too_large"
    )


def _parse(body: bytes) -> object:
    try:
        return from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        # The parser's text names a line and column, never the content.
        text = f"The request body is not valid JSON: {error}."
        raise InvalidRequestError(text, code="invalid_json") from None
