"""Work that ends when its client leaves, and the event stream around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from gateway.sse import EventStreamResponse, while_connected
from shared.errors import OverloadedError


class Client:
    """ASGI's two ends: leaves when told, and keeps what was sent."""

    def __init__(self) -> None:
        self.leaving = asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, str]:
        await self.leaving.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def test_work_that_ends_is_answered_and_leaves_no_cancellation_behind() -> None:
    client = Client()

    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert await while_connected(client.receive, work()) == 7
    client.leaving.set()
    for _ in range(3):
        await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_a_client_that_leaves_ends_the_work_with_its_last_block() -> None:
    client, freed = Client(), False

    async def work() -> None:
        nonlocal freed
        try:
            client.leaving.set()
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)
            freed = True

    with pytest.raises(ClientDisconnect):
        await while_connected(client.receive, work())
    assert freed
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    await asyncio.sleep(0.01)


async def test_a_cancellation_from_outside_stays_one() -> None:
    client = Client()
    both = asyncio.create_task(while_connected(client.receive, asyncio.sleep(30)))
    await asyncio.sleep(0.01)
    client.leaving.set()
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both


async def test_a_deadline_within_the_work_stays_a_deadline() -> None:
    client = Client()

    async def work() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(30)

    with pytest.raises(TimeoutError):
        await while_connected(client.receive, work())


async def test_what_fails_before_the_first_event_is_raised_and_nothing_is_sent() -> None:
    client = Client()

    async def source() -> AsyncGenerator[list[Any], None]:
        raise OverloadedError("full", retry_after=1.0)
        yield []

    with pytest.raises(OverloadedError):
        await EventStreamResponse(source())({}, client.receive, client.send)
    assert client.sent == []


async def test_what_comes_together_is_sent_together() -> None:
    client = Client()

    async def source() -> AsyncGenerator[list[Any], None]:
        yield [1, 2]
        yield [3]
        raise OverloadedError("full", retry_after=1.0)

    await EventStreamResponse(source())({}, client.receive, client.send)
    bodies = [message["body"] for message in client.sent[1:]]
    assert bodies[:2] == [b"data: 1\n\ndata: 2\n\n", b"data: 3\n\n"]
    assert b'"message":"full"' in bodies[2]
    assert bodies[3] == b"data: [DONE]\n\n"
    assert not client.sent[-1]["more_body"]


async def test_a_client_that_leaves_closes_the_source() -> None:
    client, closed = Client(), False

    async def source() -> AsyncGenerator[list[Any], None]:
        nonlocal closed
        try:
            yield [1]
            client.leaving.set()
            await asyncio.sleep(30)
        finally:
            closed = True

    with pytest.raises(ClientDisconnect):
        await EventStreamResponse(source())({}, client.receive, client.send)
    assert closed
    assert b"DONE" not in client.body
