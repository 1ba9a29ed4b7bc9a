"""The bytes that requests hold: their bodies and their media, all together and one by one.

Counts what is about to be kept, and refuses before it is. Does not know what the
bytes are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from shared.errors import MediaTooLargeError, OverloadedError

Take = Callable[[int], None]
"""Takes so many more bytes, or raises a PerceptError. May be called from any thread."""

_RETRY_AFTER_S = 1.0


class ByteBudget:
    """A number of bytes that all requests share. May be used from any thread."""

    def __init__(self, byte_count: int) -> None:
        self._byte_count = byte_count
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes that are taken now."""
        return self._held

    def take(self, byte_count: int) -> None:
        """
        Raises:
            OverloadedError: so many are not left.
        """
        with self._lock:
            if self._held + byte_count > self._byte_count:
                raise OverloadedError(
                    "The server is holding as many bytes of requests as it can.", retry_after=_RETRY_AFTER_S
                )
            self._held += byte_count

    def give_back(self, byte_count: int) -> None:
        """Returns bytes that were taken."""
        with self._lock:
            self._held -= byte_count


class Holding:
    """What one request has taken from the budget; freed when the request has ended.

    A thread that reads for the request may outlive it by a moment: what it takes
    after the end is refused, so that nothing stays taken.
    """

    def __init__(self, budget: ByteBudget, max_media_byte_count: int) -> None:
        """
        Args:
            budget: what all requests share.
            max_media_byte_count: for all media of this request together.
        """
        self._budget = budget
        self._max_media_byte_count = max_media_byte_count
        self._body = 0
        self._media = 0
        self._ended = False
        self._lock = threading.Lock()

    def take_body(self, byte_count: int) -> None:
        """Counts bytes of the request's body.

        Raises:
            OverloadedError: the shared budget is spent.
        """
        with self._lock:
            self._take(byte_count)
            self._body += byte_count

    def drop_body(self) -> None:
        """Gives back the bytes of a body that was thrown away."""
        with self._lock:
            self._budget.give_back(self._body)
            self._body = 0

    def take_media(self, byte_count: int) -> None:
        """Counts bytes of the request's media.

        Raises:
            MediaTooLargeError: the request's media have too many bytes together.
            OverloadedError: the shared budget is spent.
        """
        with self._lock:
            if self._media + byte_count > self._max_media_byte_count:
                raise MediaTooLargeError(
                    f"The media of the request have more than {self._max_media_byte_count} bytes together."
                )
            self._take(byte_count)
            self._media += byte_count

    def free(self) -> None:
        """Gives everything back."""
        with self._lock:
            self._ended = True
            self._budget.give_back(self._body + self._media)
            self._body = self._media = 0

    def _take(self, byte_count: int) -> None:
        if self._ended:
            raise OverloadedError("The request has ended.")
        self._budget.take(byte_count)
