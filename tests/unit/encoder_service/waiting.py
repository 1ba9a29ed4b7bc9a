"""Waiting for something that another process or task does, with an end."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = 10) -> None:
    """Waits until the condition holds.

    Raises:
        TimeoutError: it does not within `timeout_s` seconds.
    """
    async with asyncio.timeout(timeout_s):
        while True:
            answer = condition()
            if await answer if inspect.isawaitable(answer) else answer:
                return
            await asyncio.sleep(0.01)
