"""A thread that builds bodies ahead of the clock.

What is built while the clock runs takes cores that the server could use, so as much
as memory allows is built before; the rest is built as it is taken.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from types import TracebackType

from percept.bench.bodies import Prepared

AHEAD_BYTES = 256 * 1024 * 1024
AHEAD_COUNT = 4096
_LOOK_S = 0.2


class BodyFeed:
    """Bodies in the order of their indices, built ahead. A context manager: leaving it ends the thread."""

    def __init__(self, build: Callable[[int], Prepared], indices: Iterable[int], ahead: int) -> None:
        """Starts to build.

        Args:
            build: makes one request; runs in the thread.
            indices: which; may be endless.
            ahead: how many are built before they are taken, at most, memory permitting.
        """
        self._build = build
        self._indices = indices
        self._ahead = min(ahead, AHEAD_COUNT)
        self._built: queue.Queue[Prepared | BaseException | None] = queue.Queue()
        self._room = threading.Semaphore(0)
        self._full = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bodies", daemon=True)

    def __enter__(self) -> BodyFeed:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._room.release()
        self._thread.join()

    async def filled(self) -> None:
        """Waits until as much is ready as may be."""
        while not self._full.is_set():
            await asyncio.sleep(0.01)

    async def next(self) -> Prepared | None:
        """Takes one request; None after the last. Waits only where the thread could not keep up."""
        try:
            taken = self._built.get_nowait()
        except queue.Empty:
            taken = await asyncio.to_thread(self._wait)
        self._room.release()
        if isinstance(taken, BaseException):
            raise taken
        if taken is None:
            # For all others who ask after the last.
            self._built.put(None)
        return taken

    def _wait(self) -> Prepared | BaseException | None:
        """Blocks until there is one; not beyond the feed's end, when nobody wants it any more."""
        while True:
            try:
                return self._built.get(timeout=_LOOK_S)
            except queue.Empty:
                if self._ended.is_set():
                    return None

    def _run(self) -> None:
        try:
            self._build_all()
            self._built.put(None)
        except BaseException as error:
            # It belongs to whoever takes the next one.
            self._built.put(error)
        finally:
            self._full.set()

    def _build_all(self) -> None:
        room = None
        for index in self._indices:
            if self._ended.is_set():
                return
            prepared = self._build(index)
            self._built.put(prepared)
            if room is None:
                room = max(1, min(self._ahead, AHEAD_BYTES // len(prepared.body))) - 1
            elif room:
                room -= 1
            if not room:
                self._full.set()
                self._room.acquire()
