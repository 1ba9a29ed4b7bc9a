"""What the services of one machine share, as long as they run.

Knows where such things are made and that they go. Does not know what is in them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, mkdtemp

MEMORY = Path("/dev/shm")
_PREFIX = "percept-rows-"


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
def shared_paths(memory: Path = MEMORY) -> Iterator[SharedPaths]:
    """Makes them, and removes them in the end.

    Args:
        memory: folder whose files lie in memory.
    """
    with NamedTemporaryFile(prefix="percept-cores-") as cores, _row_folder(memory) as rows:
        yield SharedPaths(cores.name, rows)


@contextmanager
def _row_folder(memory: Path) -> Iterator[str | None]:
    """A folder for this process alone, locked while it is there; None where none can be made."""
    try:
        fresh = Path(mkdtemp(prefix=".percept-", dir=memory))
    except OSError:
        yield None
        return
    _remove_forgotten(memory)
    lock = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Under the name that others look for only now that it is locked.
    folder = fresh.rename(memory / f"{_PREFIX}{fresh.name.removeprefix('.percept-')}")
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_forgotten(memory: Path) -> None:
    """Removes our user's folders whose process was killed: what they hold is memory."""
    for folder in memory.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
