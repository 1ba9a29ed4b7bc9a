"""Blocks of items' rows that somebody is computing: whoever needs the same waits for them.

Two requests that come together about one item would else compute its rows side by side. Knows
hashes of blocks. Does not know the schedule: its caller says who can go on, as nobody may wait
for a sequence that waits itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from llm_service.engine.block_hash import hashes_of
from llm_service.engine.block_manager import BlockManager
from llm_service.engine.sequence import Sequence


class UnderWay:
    """The next block of each sequence that is among the rows of its items."""

    def __init__(self, blocks: BlockManager, sequences: Iterable[Sequence]) -> None:
        """Takes the sequences that hold blocks and can go on."""
        self._size = blocks.block_size
        self._caching = blocks.caching
        self._hashes: set[bytes] = set()
        for sequence in sequences:
            self.note(sequence)

    def note(self, sequence: Sequence) -> None:
        """Takes note of another such sequence."""
        content = self._next(sequence, sequence.computed_count)
        if content is not None:
            self._hashes.add(content)

    def computes(self, sequence: Sequence, count: int) -> bool:
        """Whether somebody computes what a sequence needs behind its first `count` tokens."""
        return bool(self._hashes) and self._next(sequence, count) in self._hashes

    def _next(self, sequence: Sequence, count: int) -> bytes | None:
        """The hash of the block with token `count`, where it has rows of items and is full."""
        index = count // self._size
        end = (index + 1) * self._size
        if not self._caching or count >= sequence.media_end or end > len(sequence.token_ids):
            return None
        return hashes_of(sequence, index + 1, self._size)[index]
