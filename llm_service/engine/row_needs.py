"""Which rows of which items sequences still need, and what the front must hear of it.

Knows spans and which items are open. Does not know blocks: its callers say how
many leading tokens of a sequence are in some.
"""

from __future__ import annotations

from collections.abc import Container

from llm_service.engine.messages import RowsNeeded, RowsUsed
from llm_service.engine.sequence import Sequence


class RowNeeds:
    """Notes for the front: questions for rows, and items that were passed."""

    def __init__(self, open_items: Container[str]) -> None:
        """Takes the keys of the items that are open; they are not asked for."""
        self._open_items = open_items
        self._needed: list[RowsNeeded] = []
        self._used: list[RowsUsed] = []

    def ask(self, sequence: Sequence, count: int) -> None:
        """Asks for rows at or after token `count` of items that are not open, once each."""
        keys = [
            key
            for key in sequence.keys_beyond(count)
            if key not in sequence.asked and key not in self._open_items
        ]
        if keys:
            sequence.asked.update(keys)
            self._needed.append(RowsNeeded(sequence.sequence_id, keys))

    def note_used(self, sequence: Sequence, count: int) -> None:
        """Notes which items a sequence has passed, as its first `count` tokens are in blocks.

        A waiting sequence does not hold those blocks; when they are lost it
        needs, and asks for, the items again.
        """
        if sequence.spans:
            before, sequence.unused = sequence.unused, sequence.next_spans(count)
            self._used.extend(
                RowsUsed(sequence.sequence_id, key, sequence.unused.get(key))
                for key in {**before, **sequence.unused}
                if before.get(key) != sequence.unused.get(key)
            )

    def start_again(self, sequence: Sequence) -> None:
        """Forgets what was asked for and passed: the sequence is computed from its start."""
        self.note_used(sequence, 0)
        sequence.asked.clear()

    def take_needed(self) -> list[RowsNeeded]:
        """The questions since the last call."""
        needed, self._needed = self._needed, []
        return needed

    def take_used(self) -> list[RowsUsed]:
        """The items passed since the last call."""
        used, self._used = self._used, []
        return used
