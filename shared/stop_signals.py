"""SIGTERM and SIGINT (Ctrl-C): the first asks a service for its orderly end, the next for its end at once.

Knows signals. Does not know what a service does to end.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


class StopSignals:
    """Listens for as long as the running event loop runs.

    Attributes:
        stopping: set by the first signal.
        again: called at every further one, in the event loop.
    """

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.again: Callable[[], None] = lambda: None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._heard)

    def _heard(self) -> None:
        if self.stopping.is_set():
            self.again()
        self.stopping.set()
