"""What the outermost middleware answers when a request cannot."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from gateway.access import AccessLog
from gateway.metrics import Metrics


async def test_a_request_that_the_servers_end_cuts_off_hears_so() -> None:
    begun, sent = asyncio.Event(), []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await asyncio.sleep(60)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    serving = asyncio.create_task(AccessLog(endless, Metrics(lambda: "model"))(scope, receive, send))
    await begun.wait()
    serving.cancel()
    await asyncio.wait([serving], timeout=5)
    assert sent[0]["status"] == 503
    error = json.loads(sent[1]["body"])["error"]
    assert "shutting down" in error["message"] and error["type"]
