"""A thread for small calls beside generation, so that they cannot hold it up.

Knows how many calls wait. Does not know what they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shared.errors import OverloadedError

T = TypeVar("T")

MAX_CALLS = 32
"""Calls that run or wait; further ones are refused."""

_RETRY_AFTER_S = 1.0


class SideThread:
    """One thread and a bounded queue before it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """Runs work when what came before is done.

        Raises:
            OverloadedError: too many calls wait.
        """
        if self._count >= MAX_CALLS:
            raise OverloadedError(
                f"{MAX_CALLS} calls to {self._name} wait already", retry_after=_RETRY_AFTER_S
            )
        self._count += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._count -= 1

    def close(self) -> None:
        """Lets the thread end; what waits is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)
