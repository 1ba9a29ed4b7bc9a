"""Shared memory in which rows are handed to LLM services on the same machine.

Knows the file, who uses which part of it, and when a part may be used again. Does
not know items nor the wire.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.embedding_arena import VIRTUAL_FACTOR, EmbeddingArena
from shared.row_handover import FILE_FORM, new_file_name

logger = logging.getLogger(__name__)

BUDGET = 256 * 1024 * 1024
"""Bytes of rows that lie in the file at a time; what finds no room is sent over the connection."""

_KEPT_BYTES = 64 * 1024 * 1024
"""Memory that stays with the file once it was used: fresh pages cost more than the copy into them."""


class RowStage:
    """This service's file in a folder that the LLM services have, too."""

    def __init__(self, folder: Path) -> None:
        """Takes over from services that have died.

        Raises:
            OSError: files cannot be made in the folder.
        """
        self._folder = folder
        self._remove_forgotten()
        self._file: _File | None = _File(folder)

    @contextmanager
    def loan(self) -> Iterator[Loan | None]:
        """Lends room for one push; None where the folder takes no file any more.

        What breaks off may still be read at the other end, so its part of the file must
        keep its bytes: later pushes get another file.
        """
        file = self._current()
        if file is None:
            yield None
            return
        loan = Loan(file)
        file.loan_count += 1
        try:
            yield loan
        except BaseException:
            self._retire(file)
            raise
        else:
            loan.free()
        finally:
            file.loan_count -= 1
            if file.retired and not file.loan_count:
                file.arena.close()

    def close(self) -> None:
        """Removes the file. What is lent stays until it is given back."""
        if self._file is not None:
            file, self._file = self._file, None
            file.retire()
            if not file.loan_count:
                file.arena.close()

    def _current(self) -> _File | None:
        if self._file is None:
            try:
                self._file = _File(self._folder)
            except OSError as error:
                logger.warning("rows go over connections: %s", error)
        return self._file

    def _retire(self, file: _File) -> None:
        if file is self._file:
            self._file = None
        file.retire()

    def _remove_forgotten(self) -> None:
        for path in self._folder.iterdir():
            if FILE_FORM.fullmatch(path.name):
                with suppress(OSError):
                    _remove_if_forgotten(path)


class Loan:
    """Room for the rows of one push.

    Attributes:
        name: of the file.
    """

    def __init__(self, file: _File) -> None:
        self.name = file.name
        self._file = file
        self._offsets: list[int] = []

    def put(self, data: memoryview) -> int | None:
        """Copies bytes into the file. Returns where they begin, or None where there is no room."""
        offset = self._file.allocate(len(data))
        if offset is None:
            return None
        self._offsets.append(offset)
        try:
            _write(self._file.arena.fd, data, offset)
        except OSError as error:
            # Written by a call, not through a mapping: a full file system is an error and no signal.
            logger.debug("rows go over the connection: %s", error)
            return None
        return offset

    def free(self) -> None:
        """Gives the room back."""
        while self._offsets:
            self._file.arena.free(self._offsets.pop())


class _File:
    """One file.

    Attributes:
        retired: nobody finds it any more; it is closed when the last loan ends.
    """

    def __init__(self, folder: Path) -> None:
        self.name = new_file_name()
        self.loan_count = 0
        self.retired = False
        self._path = folder / self.name
        self.arena = _made_at(folder / f"{self.name}.new", self._path)

    def allocate(self, byte_count: int) -> int | None:
        if self.arena.used_byte_count + byte_count > BUDGET:
            return None
        return self.arena.allocate(byte_count)

    def retire(self) -> None:
        self.retired = True
        with suppress(OSError):
            self._path.unlink()


def _made_at(fresh: Path, path: Path) -> EmbeddingArena:
    """Makes an empty file at `path`.

    Args:
        fresh: its name until it is locked: who looks for files without an owner must not take it for one.
    """
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        size = BUDGET * VIRTUAL_FACTOR
        os.ftruncate(fd, size)
        arena = EmbeddingArena(fd, size, writable=True, kept_byte_count=_KEPT_BYTES)
        arena.check_frees()
        fresh.rename(path)
    except OSError:
        fresh.unlink()
        os.close(fd)
        raise
    return arena


def _remove_if_forgotten(path: Path) -> None:
    """Removes a file that no service has locked."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(fd)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count
