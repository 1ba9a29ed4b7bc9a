"""The one deadline of a request."""

from __future__ import annotations

import time
from dataclasses import dataclass

from shared.errors import DeadlineError


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, in seconds."""

    moment: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    def remaining_s(self) -> float:
        """Seconds that are left.

        Raises:
            DeadlineError: none are.
        """
        left = self.moment - time.monotonic()
        if left <= 0:
            raise DeadlineError("The request took longer than its deadline allows.")
        return left
