"""The table through which services on one machine share its cores.

Knows places in a file and who holds them. Does not know how a service computes:
source/cores.hpp reads and writes the places.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from pathlib import Path

PLACE_COUNT = 64
PLACE_BYTES = 64
TABLE_BYTES = PLACE_COUNT * PLACE_BYTES


class CoreTable:
    """A file of places, mapped, and this process's place in it.

    Attributes:
        own_place: index of this process's place.
        address: of the first place, in this process.
    """

    def __init__(self, path: Path) -> None:
        """Takes a place that nobody holds, or whose holder is gone.

        Raises:
            OSError: the file cannot be used, or all places are taken.
        """
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size < TABLE_BYTES:
                file.truncate(TABLE_BYTES)
            self._memory = mmap.mmap(file.fileno(), TABLE_BYTES)
            self._holders = [
                ctypes.c_int64.from_buffer(self._memory, place * PLACE_BYTES) for place in range(PLACE_COUNT)
            ]
            try:
                self.own_place = self._free_place()
                self._holders[self.own_place].value = os.getpid()
            finally:
                # The mapping keeps the file open, and with it the lock.
                fcntl.flock(file, fcntl.LOCK_UN)
        self.address = ctypes.addressof(self._holders[0])

    def _free_place(self) -> int:
        for place, holder in enumerate(self._holders):
            if holder.value == 0 or not _is_running(holder.value):
                return place
        raise OSError(f"all {PLACE_COUNT} places are taken")


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
