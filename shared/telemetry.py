"""Logs and stopwatches. Knows how lines look; does not know what is measured."""

from __future__ import annotations

import logging
import sys
import time


def configure_logging(service: str, level: str = "info") -> None:
    """Sends this process's log to stderr, one line each: time, level, service, module, text.

    Args:
        service: name that starts each line's text, for example "encoder".
        level: "debug", "info", "warning" or "error".
    """
    form = f"%(asctime)s %(levelname)-7s {service} %(name)s: %(message)s"
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(logging.Formatter(form, datefmt="%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[stream], force=True)
    # The HTTP client logs every request at INFO, with full URLs; ours say enough.
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Stopwatch:
    """Measures seconds since its start."""

    __slots__ = ("_start",)

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start
