"""A small HTTP server that streams answers by a script: known delays, known failures.

The other side of the load generator, on a real socket. Knows as much HTTP as it needs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Script:
    """How one request is answered.

    Attributes:
        words: deltas.
        first_s: seconds before the first.
        gap_s: seconds between them.
        status: other than 200 is a refusal with `text`.
        text: of a refusal.
        break_after: deltas after which the connection is cut, or None.
        error_after: deltas after which an error frame ends the stream, or None.
        usage: whether tokens are counted, two for each delta.
        keep: whether the connection may be used again.
    """

    words: int = 4
    first_s: float = 0.0
    gap_s: float = 0.0
    status: int = 200
    text: str = "no"
    break_after: int | None = None
    error_after: int | None = None
    usage: bool = True
    keep: bool = True


@dataclass
class StreamingServer:
    """Answers request number `n` as `script(n, body)` says.

    Attributes:
        script: decides.
        bodies: of all chat requests, in the order of their arrival.
        most_under_way: the most requests that were answered at a time.
        connection_count: connections that were opened.
        drop_idle: cuts kept connections when the next request comes, as a server does that
            has closed it a moment before.
    """

    script: Callable[[int, Body], Script] = lambda n, body: Script()
    bodies: list[Body] = field(default_factory=list)
    most_under_way: int = 0
    connection_count: int = 0
    drop_idle: bool = False
    port: int = 0
    _under_way: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        try:
            served = 0
            while await self._serve_request(reader, writer, served):
                served += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _serve_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, served: int
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if self.drop_idle and served:
            writer.transport.abort()
            return False
        if head.startswith("get /v1/models"):
            await _write_whole(writer, 200, {"data": [{"id": "scripted"}]})
            return True
        length = int(head.partition("content-length:")[2].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        script = self.script(len(self.bodies), body)
        self.bodies.append(body)
        self._under_way += 1
        self.most_under_way = max(self.most_under_way, self._under_way)
        try:
            return await _answer(writer, script, body)
        finally:
            self._under_way -= 1


async def _answer(writer: asyncio.StreamWriter, script: Script, body: Body) -> bool:
    if script.status != 200:
        await _write_whole(writer, script.status, {"error": {"message": script.text}})
        return True
    connection = b"" if script.keep else b"Connection: close\r\n"
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        + connection
        + b"Transfer-Encoding: chunked\r\n\r\n"
    )
    _write_event(writer, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    await asyncio.sleep(script.first_s)
    for place in range(script.words):
        if place == script.break_after:
            writer.transport.abort()
            return False
        if place == script.error_after:
            _write_event(writer, {"error": {"message": "the engine died"}})
            break
        _write_event(writer, {"choices": [{"index": 0, "delta": {"content": f"word{place} "}}]})
        await asyncio.sleep(script.gap_s if place + 1 < script.words else 0)
    else:
        _write_end(writer, script, body)
    _write_chunk(writer, b"data: [DONE]\n\n")
    _write_chunk(writer, b"")
    await writer.drain()
    return script.keep


def _write_end(writer: asyncio.StreamWriter, script: Script, body: Body) -> None:
    _write_event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    if script.usage:
        content = body["messages"][0]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        # A template of 10 tokens and two tokens for each word.
        counted = {"prompt_tokens": 10 + 2 * len(text.split()), "completion_tokens": 2 * script.words}
        _write_event(writer, {"choices": [], "usage": counted})


def _write_event(writer: asyncio.StreamWriter, event: Body) -> None:
    _write_chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")


def _write_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def _write_whole(writer: asyncio.StreamWriter, status: int, answer: Body) -> None:
    data = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()


@asynccontextmanager
async def streaming(
    script: Callable[[int, Body], Script] | Script = Script(),
) -> AsyncIterator[StreamingServer]:
    """Runs a server on a free port."""
    chosen = (lambda n, body: script) if isinstance(script, Script) else script
    served = StreamingServer(chosen)
    server = await asyncio.start_server(served.serve_connection, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
