"""Rows that encoder services on the same machine have put into shared memory.

Knows the folder and reads from files in it. Does not know what the bytes are of.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from shared.errors import InvalidRequestError
from shared.row_handover import FILE_FORM


class SharedFile:
    """A file of an encoder service, open for reading."""

    def __init__(self, fd: int) -> None:
        """Args:
        fd: is closed with this.
        """
        self._fd = fd

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fills `view` with the file's bytes from `offset` on.

        Raises:
            InvalidRequestError: the file has no such bytes.
        """
        try:
            # A mapping would end the process where the file is shorter than it was said to be.
            count = os.preadv(self._fd, [view], offset)
        except (OSError, OverflowError) as error:
            raise InvalidRequestError(
                f"the shared file cannot be read: {error}", param="shared.file_offset"
            ) from error
        if count != len(view):
            raise InvalidRequestError(
                f"the shared file has {count} of {len(view)} bytes there", param="shared.byte_count"
            )

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def open_shared(folder: Path, name: str) -> SharedFile | None:
    """Opens an encoder's file; None where the folder has none of that name, or something else."""
    if not FILE_FORM.fullmatch(name):
        return None
    try:
        fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return SharedFile(fd)
