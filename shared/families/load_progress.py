"""How much of a half's weights has been read, for whoever waits for them.

Knows fractions and seconds. Does not know weights, nor who listens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

INTERVAL_S = 1.0
"""Seconds between two reports, at least."""

_report: ContextVar[Callable[[float], None] | None] = ContextVar("load_progress", default=None)


@contextmanager
def reporting_to(listener: Callable[[float], None]) -> Iterator[None]:
    """Inside, `listener` hears now and then what fraction of the weights is there, from 0 to 1."""
    due = time.monotonic() + INTERVAL_S

    def report(fraction: float) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + INTERVAL_S
            listener(fraction)

    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def report(fraction: float) -> None:
    """Tells the listener of this thread, if there is one."""
    listener = _report.get()
    if listener is not None:
        listener(fraction)
