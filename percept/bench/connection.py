"""HTTP/1.1 with as little work as possible between the socket and the time stamp.

The generator shares its machine with the server that it measures. A general client
takes 50 microseconds of CPU for each chunk of a stream, this takes 9 (measured with
16 streams), and it reads the clock before it reads the bytes.

Knows requests, answers and kept connections. Does not know what is in them. Proxies
of the environment are not asked: what they add is not the server's.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import cast
from urllib.parse import urlsplit

import httptools

from percept.bench.answer import AnswerReader
from percept.bench.target import Target


class BrokenConnectionError(Exception):
    """The connection ended before the answer did. `str(error)` says how."""


class _Connection(asyncio.Protocol):
    """One connection: one exchange at a time. The parser calls the `on_` methods."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._reader: AnswerReader | None = None
        self._ended: asyncio.Future[None] | None = None
        self._content_type = b""
        self._now = 0.0
        self.heard = False
        self.reusable = True

    async def exchange(self, head: bytes, body: bytes, reader: AnswerReader) -> None:
        """Sends a request and feeds the reader until the answer is complete.

        Raises:
            BrokenConnectionError: it never was.
        """
        assert self._transport is not None
        self._ended = asyncio.get_running_loop().create_future()
        self._reader, self._content_type, self.heard = reader, b"", False
        self._parser = httptools.HttpResponseParser(self)
        self._transport.writelines((head, body))
        await self._ended

    @property
    def is_open(self) -> bool:
        """Says whether a request can be sent, as far as is known here."""
        return self.reusable and self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Drops the connection at once."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of a class of their own.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self._end(f"the connection broke: {error}" if error else "the server closed the connection")

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        if self._parser is None or self._ended is None or self._ended.done():
            # Nobody asked for it: nothing that follows can be trusted.
            self.close()
            return
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"unreadable HTTP: {error}")
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._content_type = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None and self._reader is not None
        self.reusable = self._parser.should_keep_alive()
        self._reader.begin(self._parser.get_status_code(), self._content_type)

    def on_body(self, data: bytes) -> None:
        assert self._reader is not None
        self._reader.feed(data, self._now)

    def on_message_complete(self) -> None:
        self._end(None)

    def _end(self, broken: str | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if broken is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(BrokenConnectionError(broken))


class Connections:
    """Connections to one server, kept for the next request. As many as there are requests at a time."""

    def __init__(self, target: Target) -> None:
        url = urlsplit(target.chat_url)
        assert url.hostname is not None
        self._host, self._port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._head = _head(url.path + (f"?{url.query}" if url.query else ""), url.netloc, target.headers)
        self._idle: list[_Connection] = []

    async def post(self, body: bytes, reader: AnswerReader) -> None:
        """Sends a body and feeds the reader until the answer is complete.

        Raises:
            BrokenConnectionError: it never was.
            OSError: there is no connection to be had.
        """
        head = self._head + b"%d\r\n\r\n" % len(body)
        while connection := self._take_idle():
            try:
                await self._exchange(connection, head, body, reader)
                return
            except BrokenConnectionError:
                if connection.heard:
                    raise
                # The server had closed it while it was idle: nothing of this request was heard of.
        await self._exchange(await self._connect(), head, body, reader)

    async def _exchange(
        self, connection: _Connection, head: bytes, body: bytes, reader: AnswerReader
    ) -> None:
        try:
            await connection.exchange(head, body, reader)
        except BaseException:
            connection.close()
            raise
        if connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        return connection

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    def close(self) -> None:
        """Drops all kept connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def _head(path: str, host: str, headers: dict[str, str]) -> bytes:
    """A request's head up to the number that says how long its body is."""
    lines = {
        "Host": host.rpartition("@")[2],
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        **headers,
    }
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{text}Content-Length: ".encode("latin-1")
