"""The pool of KV blocks: who holds which, and which content is still in one.

Knows block ids, reference counts and content hashes. Does not know sequences,
media or what a block's slots hold.

A block is in one of three states:

    held    reference count of 1 or more; several sequences may share it
    cached  free, but its content can be found by hash and held again
    empty   free, and nothing can find it

Free blocks wait in one line. Empty ones are taken first, then cached ones, the
least recently released first; taking one forgets its content.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Run


class BlockManager:
    """Hands out blocks, shares them by content, and takes them back.

    Attributes:
        caching: content of blocks is found again.
    """

    def __init__(self, block_count: int, block_size: int, *, caching: bool = True) -> None:
        """Makes a pool of `block_count` empty blocks of `block_size` slots each."""
        assert block_count > 0 and block_size > 0
        self.block_count = block_count
        self.block_size = block_size
        self.caching = caching
        self._reference_counts = [0] * block_count
        self._hash_of: list[bytes | None] = [None] * block_count
        self._block_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(block_count))

    @property
    def free_count(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._free)

    @property
    def used_count(self) -> int:
        """Blocks that somebody holds."""
        return self.block_count - len(self._free)

    def blocks_for(self, token_count: int) -> int:
        """Number of blocks that `token_count` tokens take."""
        return -(-token_count // self.block_size)

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest leading run of `hashes` that is in the pool. Changes nothing."""
        found: list[int] = []
        for content in hashes:
            block = self._block_of.get(content)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Run[int]) -> int:
        """How many of `blocks` nobody holds: holding them costs that many free blocks."""
        return sum(1 for block in blocks if self._reference_counts[block] == 0)

    def hold(self, blocks: Run[int]) -> None:
        """Adds a reference to each of `blocks`, which `find` has given."""
        for block in blocks:
            if self._reference_counts[block] == 0:
                del self._free[block]
            self._reference_counts[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Takes `count` free blocks, held once each; their former content is forgotten."""
        assert count <= len(self._free), f"{count} blocks of {len(self._free)} free ones"
        return [self._take() for _ in range(count)]

    def register(self, block: int, content: bytes) -> None:
        """Says that the held `block` is full and computed, and what is in it.

        A second block of the same content stays unknown: the first serves.
        """
        assert self._reference_counts[block] > 0, f"block {block} is registered by nobody"
        if not self.caching or self._hash_of[block] is not None or content in self._block_of:
            return
        self._hash_of[block] = content
        self._block_of[content] = block

    def release(self, blocks: Run[int]) -> None:
        """Takes one reference from each block of a block table.

        The table's end is freed first, so that a prefix outlives what follows it.
        """
        for block in reversed(blocks):
            assert self._reference_counts[block] > 0, f"block {block} is released twice"
            self._reference_counts[block] -= 1
            if self._reference_counts[block] == 0:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)

    def check_integrity(self, tables: Iterable[Run[int]]) -> None:
        """Asserts that the pool's books agree with the block tables of all sequences."""
        counts = [0] * self.block_count
        for table in tables:
            assert len(set(table)) == len(table), f"a block twice in one table: {table}"
            for block in table:
                counts[block] += 1
        assert counts == self._reference_counts, "reference counts differ from the block tables"
        free = {block for block, count in enumerate(counts) if count == 0}
        assert free == set(self._free), "free blocks and held blocks are not the whole pool"
        named = {content: block for block, content in enumerate(self._hash_of) if content is not None}
        assert named == self._block_of, "content is found in a block that does not have it"

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        content = self._hash_of[block]
        if content is not None:
            del self._block_of[content]
            self._hash_of[block] = None
        self._reference_counts[block] = 1
        return block
