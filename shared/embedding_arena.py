"""Shared memory that embedding rows lie in: on their way to an LLM service, and there until their prefill.

One sparse memory file of a fixed virtual size: one process allocates,
writes and frees regions in it, others map or read the same file and only
reads. Freeing gives the memory back to the machine at once.

Knows bytes and offsets. Knows neither items nor budgets: the virtual size is a
multiple of what the embedding store lets in, so that a fragmented arena still
finds room.
"""

from __future__ import annotations

import bisect
import mmap
import os

ALIGNMENT = mmap.PAGESIZE
"""Regions start at multiples of this, in bytes, as memory is given back by whole pages."""

VIRTUAL_FACTOR = 8
"""Virtual size of an arena as a multiple of the bytes that are ever in use."""


def round_up(byte_count: int, multiple: int = ALIGNMENT) -> int:
    """Returns the least multiple of `multiple` that is not below `byte_count`."""
    return -(-byte_count // multiple) * multiple


class EmbeddingArena:
    """A mapped memory file with first-fit regions.

    Attributes:
        fd: the memory file's descriptor, for the engine process to inherit.
        byte_count: virtual size in bytes.
    """

    def __init__(self, fd: int, byte_count: int, *, writable: bool, kept_byte_count: int = 0) -> None:
        self.fd = fd
        self.byte_count = byte_count
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(fd, byte_count, flags=mmap.MAP_SHARED, prot=protection)
        self._bytes = memoryview(self._map)
        self._kept_byte_count = round_up(kept_byte_count)
        self._gaps: list[tuple[int, int]] = [(0, byte_count)]
        self._lengths: dict[int, int] = {}

    @classmethod
    def create(cls, byte_count: int, kept_byte_count: int = 0) -> EmbeddingArena:
        """Makes an empty arena of at least `byte_count` virtual bytes, for its owner.

        Args:
            kept_byte_count: leading bytes whose memory is not given back once it was used.
        """
        rounded = round_up(max(byte_count, 1))
        fd = os.memfd_create("percept-embeddings", os.MFD_CLOEXEC)
        os.ftruncate(fd, rounded)
        return cls(fd, rounded, writable=True, kept_byte_count=kept_byte_count)

    @classmethod
    def open(cls, fd: int, byte_count: int) -> EmbeddingArena:
        """Maps the arena that another process made, for reading.

        Args:
            fd: the inherited descriptor.
            byte_count: the creator's `byte_count`.
        """
        return cls(fd, byte_count, writable=False)

    def check_frees(self) -> None:
        """Gives back a page that nobody has used.

        Raises:
            OSError: the file system cannot give memory of a file back.
        """
        self._map.madvise(mmap.MADV_REMOVE, self.byte_count - ALIGNMENT, ALIGNMENT)

    def allocate(self, byte_count: int) -> int | None:
        """Takes a region and returns its offset, or None where no gap is long enough."""
        assert byte_count > 0
        wanted = round_up(byte_count)
        for index, (offset, length) in enumerate(self._gaps):
            if length >= wanted:
                self._gaps[index : index + 1] = (
                    [(offset + wanted, length - wanted)] if length > wanted else []
                )
                self._lengths[offset] = wanted
                return offset
        return None

    def free(self, offset: int) -> None:
        """Gives a region back. Nobody may read it any more."""
        length = self._lengths.pop(offset)
        first = max(offset, self._kept_byte_count)
        if first < offset + length:
            self._map.madvise(mmap.MADV_REMOVE, first, offset + length - first)
        index = bisect.bisect(self._gaps, (offset, length))
        self._gaps.insert(index, (offset, length))
        self._join(index)
        if index > 0:
            self._join(index - 1)

    def view(self, offset: int, byte_count: int) -> memoryview:
        """Returns bytes of the arena without copying: writable for its creator alone."""
        assert offset >= 0 and offset + byte_count <= self.byte_count
        return self._bytes[offset : offset + byte_count]

    @property
    def used_byte_count(self) -> int:
        """Bytes in allocated regions, rounded up to whole pages each."""
        return sum(self._lengths.values())

    def close(self) -> None:
        """Unmaps the file and closes its descriptor. All views must be gone."""
        self._bytes.release()
        self._map.close()
        os.close(self.fd)

    def _join(self, index: int) -> None:
        """Merges the gap at `index` with the next one where they touch."""
        if index + 1 >= len(self._gaps):
            return
        (offset, length), (next_offset, next_length) = self._gaps[index], self._gaps[index + 1]
        if offset + length == next_offset:
            self._gaps[index : index + 2] = [(offset, length + next_length)]
