"""What lies between connections and requests: heads, chunks and what is no HTTP at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.integration.scripted_services import Stack, running_stack, until

PATH = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
REQUEST = PATH + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
MOST_OF_A_HEAD = 64 * 1024
MOST_SENT = 16 * MOST_OF_A_HEAD

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(stack: Stack) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rsplit(":", 1)[1]))
    try:
        yield reader, writer
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    fields = [line.lower().partition(b":")[::2] for line in head.split(b"\r\n")[1:-2]]
    length = next((int(value) for name, value in fields if name == b"content-length"), None)
    # Without a length, the body ends with the connection.
    body = await asyncio.wait_for(reader.read() if length is None else reader.readexactly(length), 10)
    return int(head.split(b" ")[1]), body


def endless(beginning: bytes, piece: bytes) -> Iterator[bytes]:
    yield beginning
    for _ in range(MOST_SENT // len(piece)):
        yield piece


ENDLESS = {
    "target": (b"GET /v1/models?", b"a" * 1000),
    "value": (PATH + b"X-Long: ", b"a" * 1000),
    "name": (PATH, b"a" * 1000),
    "fields": (PATH, b"X-Field: some value\r\n" * 50),
    "chunk extension": (PATH + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a" * 1000),
    "trailers": (PATH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Field: some value\r\n" * 50),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_has_no_end_is_cut(name: str) -> None:
    """The connection is closed long before all has been sent, nothing is left, others are served."""
    async with running_stack() as stack, connected(stack) as (reader, writer):
        answer = asyncio.create_task(read_answer(reader))
        sent = 0
        with suppress(ConnectionError):
            for piece in endless(*ENDLESS[name]):
                writer.write(piece)
                sent += len(piece)
                await writer.drain()
                await asyncio.sleep(0.001)
                if answer.done():
                    break
        assert sent < MOST_SENT / 4
        status, _ = await answer
        assert status == 400
        await until(lambda: in_gateway(stack) == 0, seconds=5)
        async with connected(stack) as (other_reader, other_writer):
            other_writer.write(REQUEST)
            assert (await read_answer(other_reader))[0] == 200


async def test_the_bound_is_one_requests() -> None:
    """Heads of many requests on one connection, each below it, are not added up."""
    padding = b"X-Long: " + b"a" * (MOST_OF_A_HEAD // 2) + b"\r\n"
    request = REQUEST.replace(b"Host: a\r\n", b"Host: a\r\n" + padding)
    async with running_stack() as stack, connected(stack) as (reader, writer):
        for _ in range(5):
            writer.write(request)
            assert (await read_answer(reader))[0] == 200


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.x\r\n\r\n"]
)
async def test_no_http(data: bytes) -> None:
    async with running_stack() as stack, connected(stack) as (reader, writer):
        writer.write(data)
        assert (await read_answer(reader))[0] == 400
        assert await reader.read() == b""


LENGTH = b"Content-Length: %d\r\n" % len(BODY)


async def test_a_body_of_two_lengths_is_refused() -> None:
    """A proxy in front might have read the other one."""
    async with running_stack() as stack, connected(stack) as (reader, writer):
        writer.write(PATH + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY)
        assert (await read_answer(reader))[0] == 400


async def test_an_offer_of_another_protocol_is_passed_over() -> None:
    """Java's client offers HTTP/2 with its first request, body and all."""
    offer = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    )
    request = REQUEST.replace(b"Host: a\r\n", b"Host: a\r\n" + offer)
    async with running_stack() as stack, connected(stack) as (reader, writer):
        for each in (request, REQUEST, request):
            writer.write(each)
            status, body = await read_answer(reader)
            assert (status, json.loads(body)["object"]) == (200, "chat.completion")


async def test_requests_sent_at_once_are_answered_in_order() -> None:
    models = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
    async with running_stack() as stack, connected(stack) as (reader, writer):
        writer.write(REQUEST + models + REQUEST)
        kinds = [json.loads((await read_answer(reader))[1])["object"] for _ in range(3)]
        assert kinds == ["chat.completion", "list", "chat.completion"]


async def test_a_client_may_wait_to_be_asked_for_the_body() -> None:
    async with running_stack() as stack, connected(stack) as (reader, writer):
        writer.write(PATH + LENGTH + b"Expect: 100-continue\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await read_answer(reader))[0] == 200


def in_gateway(stack: Stack) -> float | None:
    return stack.gateway.metrics.registry.get_sample_value("percept:num_requests_in_gateway")
