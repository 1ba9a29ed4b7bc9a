"""One event loop in a thread of its own, shared by all synchronous clients of a program.

gRPC's asyncio side serves one loop of a process best. The thread starts with the
first client and ends with the last. Knows no service.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_CANCEL_S = 5.0

_lock = threading.Lock()
_running: LoopThread | None = None


class LoopThread:
    """A loop that runs until its last user releases it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.user_count = 0
        self._thread = threading.Thread(target=self._run, name="percept-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs work there and returns its result. Interrupted, it cancels the work first."""
        ended = threading.Event()

        async def watched() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self.loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                # What it holds (a progress bar, calls) is let go before the caller goes on.
                ended.wait(_CANCEL_S)
            raise

    def stop(self) -> None:
        """Ends the loop and its thread."""
        with contextlib.suppress(RuntimeError):  # It is closed already.
            asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop).result(_CANCEL_S)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(_CANCEL_S)
            if not self._thread.is_alive():
                self.loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
    await asyncio.get_running_loop().shutdown_default_executor()


def acquire() -> LoopThread:
    """The running loop, started where there is none. Each user releases it once."""
    global _running  # noqa: PLW0603 - one for the process is the point
    with _lock:
        if _running is None:
            _running = LoopThread()
        _running.user_count += 1
        return _running


def release(thread: LoopThread) -> None:
    """Gives the loop back; the last user ends it."""
    global _running  # noqa: PLW0603
    with _lock:
        thread.user_count -= 1
        if thread.user_count:
            return
        if _running is thread:
            _running = None
    thread.stop()
