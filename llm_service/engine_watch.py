"""Notices an engine whose step never returns.

Such a process lives and its socket stands, so neither tells. The engine answers
a `Ping` between two steps, so one that says nothing for longer than a step may
take is stuck. Knows time only; does not know processes or messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_ASKS_PER_TIMEOUT = 4


class EngineWatch:
    """Asks an engine that should be at work for a sign of life, again and again."""

    def __init__(self, timeout_s: float, ask: Callable[[], None]) -> None:
        self.timeout_s = timeout_s
        self._ask = ask
        self._heard = asyncio.Event()

    def heard(self) -> None:
        """The engine has said something, whatever it was."""
        self._heard.set()

    async def until_silent(self, at_work: Callable[[], bool]) -> None:
        """Returns when the engine has said nothing for the timeout though it was asked.

        Args:
            at_work: whether anybody waits for the engine; an idle one is left to sleep.
        """
        while True:
            await asyncio.sleep(self.timeout_s / _ASKS_PER_TIMEOUT)
            if not at_work():
                continue
            self._heard.clear()
            self._ask()
            try:
                async with asyncio.timeout(self.timeout_s):
                    await self._heard.wait()
            except TimeoutError:
                return
