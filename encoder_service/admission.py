"""Who is let in: bounds on items and bytes, and when to come back.

Knows counts, bytes and the measured rate. Does not know what items are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.errors import OverloadedError

_MIN_RETRY_S = 0.5
_MAX_RETRY_S = 30.0
_UNMEASURED_RETRY_S = 1.0
_SMOOTHING = 0.1
"""Weight of the newest interval between two finished items."""


class Admission:
    """Permits for items, refused at once where there are none.

    Args:
        max_item_count: items accepted and not finished.
        max_byte_count: payload bytes of these.
        clock: seconds, monotonic.
    """

    def __init__(
        self, max_item_count: int, max_byte_count: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_item_count = max_item_count
        self.item_count = 0
        self._max_byte_count = max_byte_count
        self._byte_count = 0
        self._clock = clock
        self._last_finish: float | None = None
        self._interval_s: float | None = None

    @contextmanager
    def permit(self, byte_count: int) -> Iterator[None]:
        """Holds room for an item and for the payload that it will send.

        Raises:
            OverloadedError: there is none; says when to try again.
        """
        if self.item_count >= self.max_item_count:
            raise OverloadedError("the encoder's queue is full", retry_after=self.retry_after_s())
        if not self._has_room(byte_count):
            raise OverloadedError("the encoder's payload buffer is full", retry_after=self.retry_after_s())
        self.item_count += 1
        self._byte_count += byte_count
        try:
            yield
            self._measure()
        finally:
            self.item_count -= 1
            self._byte_count -= byte_count

    def _has_room(self, byte_count: int) -> bool:
        # An item without payload needs no room, and a lone payload always has it:
        # the bound is on what waits beside others.
        alone = byte_count == 0 or self._byte_count == 0
        return alone or self._byte_count + byte_count <= self._max_byte_count

    def retry_after_s(self) -> float:
        """Seconds until half of the queue is done, at the measured rate."""
        if self._interval_s is None:
            return _UNMEASURED_RETRY_S
        return min(max(self._interval_s * self.item_count / 2, _MIN_RETRY_S), _MAX_RETRY_S)

    def _measure(self) -> None:
        """Notes that an item was finished. Idle time between items is no measure of the rate."""
        now = self._clock()
        if self._last_finish is not None and self.item_count > 1:
            interval = now - self._last_finish
            known = interval if self._interval_s is None else self._interval_s
            self._interval_s = known + _SMOOTHING * (interval - known)
        self._last_finish = now
