"""Reads a request's body under limits: JSON, or piece by piece for others.

Knows HTTP bodies and JSON. Does not know what a body means.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from gateway.budget import Holding
from shared.errors import InvalidRequestError, MediaTooLargeError, PerceptError, UnsupportedMediaError

# Parsed on the event loop up to this size; above it in a thread.
_INLINE_SIZE = 64 * 1024
# A body over the limit is read on so far and thrown away, so that a client that
# writes all before it reads gets to see the answer. Then the connection is closed.
_DISCARD_S = 30.0
_DISCARD_BYTE_COUNT = 1024 * 1024 * 1024

CLOSE = "close"
"""Key in a request's scope's state, set where its connection cannot be used again."""


class Sink(Protocol):
    """Takes a body piece by piece."""

    def take(self, chunk: bytes) -> None:
        """Takes the next piece.

        Raises:
            PerceptError: the body cannot be what it should be, or breaks a limit.
        """
        ...

    def clear(self) -> None:
        """Lets go of what it took: the body is refused."""
        ...


class _Whole:
    def __init__(self) -> None:
        self.body = bytearray()

    def take(self, chunk: bytes) -> None:
        self.body += chunk

    def clear(self) -> None:
        self.body.clear()


async def read_json(request: Request, max_byte_count: int, holding: Holding) -> object:
    """Returns the parsed JSON body.

    Raises:
        UnsupportedMediaError: the Content-Type is not JSON.
        MediaTooLargeError: the body is over the limit; checked while it arrives.
        OverloadedError: all requests together hold too many bytes.
        InvalidRequestError: no valid JSON, or nested too deeply.
        ClientDisconnect: the client left before the body was complete.
    """
    _check_content_type(request.headers.get("content-type", ""))
    whole = _Whole()
    await read_into(whole, request, max_byte_count, holding)
    body = bytes(whole.body)
    if len(body) <= _INLINE_SIZE:
        return _parse(body)
    return await asyncio.to_thread(_parse, body)


def _check_content_type(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaError(
            "The Content-Type of the request must be application/json.", code="unsupported_content_type"
        )


async def read_into(sink: Sink, request: Request, max_byte_count: int, holding: Holding) -> None:
    """Reads the body to its end.

    Raises:
        MediaTooLargeError: the body is over the limit; checked while it arrives.
        OverloadedError: all requests together hold too many bytes.
        ClientDisconnect: the client left before the body was complete.
        PerceptError: the sink's own.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_byte_count:
        await _discard(request)
        raise _too_large(max_byte_count)
    count = 0
    more = True
    while more:
        chunk, more = await _next_chunk(request)
        count += len(chunk)
        try:
            if count > max_byte_count:
                raise _too_large(max_byte_count)
            holding.take_body(len(chunk))
            sink.take(chunk)
        except PerceptError:
            sink.clear()
            holding.drop_body()
            if more:
                await _discard(request)
            raise


async def _next_chunk(request: Request) -> tuple[bytes, bool]:
    """Returns a piece of the body, and whether there is more."""
    message = await request.receive()
    if message["type"] != "http.request":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _discard(request: Request) -> None:
    """Throws away what still comes, within bounds; past them the connection is to be closed."""
    left = _DISCARD_BYTE_COUNT
    try:
        async with asyncio.timeout(_DISCARD_S):
            while left > 0:
                chunk, more = await _next_chunk(request)
                if not more:
                    return
                left -= len(chunk)
    except (TimeoutError, ClientDisconnect):
        pass  # The client is slow or gone; the answer is written all the same.
    request.scope["state"][CLOSE] = True


def _too_large(max_byte_count: int) -> MediaTooLargeError:
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
