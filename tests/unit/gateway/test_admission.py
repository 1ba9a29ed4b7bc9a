"""A request's place is freed, whatever its client does."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from gateway.admission import HOLDING, Admission
from gateway.budget import ByteBudget
from gateway.metrics import Metrics

SCOPE: Scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}


async def nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def test_a_client_that_takes_nothing_loses_its_place() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][HOLDING].take_body(10)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def stuck(message: Message) -> None:
        await asyncio.Event().wait()

    metrics, budget = Metrics(lambda: "tiny"), ByteBudget(100)
    admission = Admission(
        app, max_count=1, budget=budget, max_media_byte_count=100, send_timeout_s=0.05, metrics=metrics
    )
    async with asyncio.timeout(5):
        for _ in range(2):
            with pytest.raises(ClientDisconnect):
                await admission(dict(SCOPE), nothing, stuck)
    assert metrics.registry.get_sample_value("percept:num_requests_in_gateway") == 0
    assert budget.held == 0
