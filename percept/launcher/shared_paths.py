"""What the services of one machine share, as long as they run.

Knows where such things are made and that they go. Does not know what is in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from tempfile import NamedTemporaryFile, TemporaryDirectory

_MEMORY = "/dev/shm"


@dataclass(frozen=True, slots=True)
class SharedPaths:
    """Paths that encoders and LLMs are given.

    Attributes:
        cores: file of the table of cores; None for none.
        rows: folder in which rows are handed over; None for none.
    """

    cores: str | None = None
    rows: str | None = None


@contextmanager
def shared_paths() -> Iterator[SharedPaths]:
    """Makes them, and removes them in the end."""
    with NamedTemporaryFile(prefix="percept-cores-") as cores, _row_folder() as rows:
        yield SharedPaths(cores.name, rows)


def _row_folder() -> AbstractContextManager[str | None]:
    if not os.access(_MEMORY, os.W_OK | os.X_OK):
        return nullcontext()
    return TemporaryDirectory(prefix="percept-rows-", dir=_MEMORY, ignore_cleanup_errors=True)
