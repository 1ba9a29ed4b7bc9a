"""Standard output, for commands that write an answer as it comes. Knows where it may break."""

from __future__ import annotations

import os
import sys


class OutputError(Exception):
    """What was answered cannot be written. `str(error)` says why."""


def say(text: str) -> None:
    """Writes text at once.

    Raises:
        OutputError: nobody takes it: standard output is closed, or its disk is full.
        BrokenPipeError: who reads has left, and needs no message.
    """
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What could not be written is dropped, or the interpreter would try it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"standard output: {error.strerror}") from None
