"""Decides what each step computes, and books what it has computed.

One rule: computed tokens catch up with known tokens, within a budget of tokens
and seats. Prefill, chunked prefill, decode and recompute are amounts. A span
whose rows are not there yet is a ceiling; a sequence at its ceiling is
*stalled*: it takes no seat and yields its blocks to whoever can go on.

Who goes first, and why nobody starves:

- Among sequences with blocks, those that lack one token (decode) go before
  those that lack more, older before younger: decoding never waits for a prefill.
- Waiting sequences get blocks for all that they can compute, oldest first. A
  stalled one is passed over; after `PATIENCE` others it holds the line instead.
- Out of blocks, the youngest stalled sequence is preempted, then the youngest
  of those younger than who asks. A stalled one yields to younger ones only
  `MAX_YIELDS` times. So the oldest that can go on always does.

A sequence that grows past a length beyond which the model computes in another way
gives its blocks back and is computed again.

Knows sequences and the pool. Does not know the model, the clock or the front.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Run
from dataclasses import dataclass, field
from typing import Protocol

from llm_service.engine.batch import SampledToken, ScheduledBatch, ScheduledSequence
from llm_service.engine.block_hash import hashes_of
from llm_service.engine.block_manager import BlockManager
from llm_service.engine.row_needs import RowNeeds
from llm_service.engine.sequence import Sequence
from llm_service.engine.under_way import UnderWay

MAX_YIELDS = 2
"""Times that a stalled sequence gives its blocks up to a younger one."""

PATIENCE = 32
"""Sequences that may be admitted past a stalled one before it holds the line."""


class RowCounts(Protocol):
    """Which items are open, and how many of their rows are there."""

    def __contains__(self, key: object) -> bool: ...

    def ready_count(self, key: str) -> int: ...


@dataclass(slots=True)
class _Step:
    """A batch in the making."""

    budget: int
    seats: int
    items: dict[int, ScheduledSequence] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return self.budget == 0 or self.seats == 0

    def add(self, item: ScheduledSequence) -> None:
        self.items[item.sequence.sequence_id] = item
        self.budget -= item.count
        self.seats -= 1

    def drop(self, sequence: Sequence) -> None:
        item = self.items.pop(sequence.sequence_id, None)
        if item is not None:
            self.budget += item.count
            self.seats += 1


@dataclass(frozen=True, slots=True)
class _Prefix:
    """What the cache has of a waiting sequence, and how far it could go from there.

    Attributes:
        blocks: cached blocks of its first tokens.
        length: tokens in them.
        ceiling: tokens that can be computed with the rows that are there.
        complete: these are all known tokens.
    """

    blocks: list[int]
    length: int
    ceiling: int
    complete: bool


class Scheduler:
    """Holds all sequences from their arrival to their end.

    Attributes:
        needs: what the front must hear about rows.
        preemption_count, prefix_query_count, prefix_hit_count: since the start;
            the latter two in prompt tokens.
    """

    def __init__(
        self,
        blocks: BlockManager,
        rows: RowCounts,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_held: int | None = None,
    ) -> None:
        """Makes an empty schedule.

        Args:
            max_held: most sequences that hold blocks at a time, where the runner keeps
                more than blocks of each; None: as many as the blocks allow.
        """
        self._blocks = blocks
        self._rows = rows
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_held = max_held
        self._preempted: list[int] = []
        self._running: dict[int, Sequence] = {}
        self._waiting: list[Sequence] = []
        self._sequences: dict[int, Sequence] = {}
        self._grown: list[Sequence] = []
        self.needs = RowNeeds(rows)
        self.preemption_count = 0
        self.prefix_query_count = 0
        self.prefix_hit_count = 0

    @property
    def running_count(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        """Sequences that wait for blocks."""
        return len(self._waiting)

    @property
    def awaits_rows(self) -> bool:
        """Whether a sequence needs rows that are not there yet; waiting for blocks alone does not count."""
        ready = self._rows.ready_count
        return any(sequence.ceiling(ready) < len(sequence.token_ids) for sequence in self._sequences.values())

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, sequence: Sequence) -> None:
        """Takes a sequence in and asks for the rows that the prefix cache cannot spare it."""
        assert sequence.sequence_id not in self._sequences
        self._sequences[sequence.sequence_id] = sequence
        self._wait(sequence)

    def remove(self, sequence_id: int) -> None:
        """Lets go of a sequence and its blocks, wherever it stands."""
        sequence = self._sequences.pop(sequence_id)
        if self._running.pop(sequence_id, None) is None:
            self._waiting.remove(sequence)
        self._release(sequence)

    def reopen(self, key: str) -> None:
        """Asks again for a closed item, for every sequence that still needs it."""
        for sequence in self._sequences.values():
            if any(span.key == key for span in sequence.spans):
                sequence.asked.discard(key)
                self.needs.ask(sequence, sequence.computed_count or self._prefix_length(sequence))

    def schedule(self) -> ScheduledBatch:
        """Decides a step. An empty batch means that every sequence waits for rows."""
        self._switch_grown()
        step = _Step(self._max_num_batched_tokens, self._max_num_seqs)
        preemptions = self.preemption_count
        for sequence in sorted(self._running.values(), key=_precedence):
            if step.full:
                break
            if sequence.sequence_id in self._running:
                self._advance(sequence, step)
        # Blocks that a preemption has set free are for the preemptor's next steps.
        if not (step.items and self.preemption_count > preemptions):
            self._admit_waiting(step)
        return self._batch(step)

    def _batch(self, step: _Step) -> ScheduledBatch:
        if not step.items:
            return ScheduledBatch()
        preempted, self._preempted = self._preempted, []
        return ScheduledBatch(list(step.items.values()), preempted)

    def settle(self, batch: ScheduledBatch, tokens: Run[SampledToken]) -> None:
        """Books a step that has run."""
        for item in batch.items:
            sequence = item.sequence
            sequence.computed_count = item.start + item.count
            self._register(sequence, item.start)
            self.needs.note_used(sequence, sequence.computed_count)
        for token in tokens:
            sequence = self._sequences[token.sequence_id]
            sequence.token_ids.append(token.token_id)
            if sequence.must_switch:
                self._grown.append(sequence)

    def check_integrity(self) -> None:
        """Asserts that blocks are held by the running sequences and by nobody else."""
        assert len(self._running) + len(self._waiting) == len(self._sequences)
        assert not any(sequence.block_table for sequence in self._waiting), "blocks without a seat"
        for sequence in self._running.values():
            assert self._blocks.blocks_for(sequence.computed_count) <= len(sequence.block_table)
        self._blocks.check_integrity(sequence.block_table for sequence in self._running.values())

    # Sequences that hold blocks.

    def _advance(self, sequence: Sequence, step: _Step) -> None:
        """Adds as much of a running sequence to the step as can be."""
        end = self._chunk_end(sequence, step.budget)
        if end <= sequence.computed_count:
            return
        shortage = self._blocks.blocks_for(end) - len(sequence.block_table)
        while shortage > self._blocks.free_count:
            victim = self._victim(sequence)
            if victim is None:
                return
            self._preempt(victim, sequence, step)
        if shortage > 0:
            sequence.block_table.extend(self._blocks.allocate(shortage))
        start = sequence.computed_count
        step.add(ScheduledSequence(sequence, start, end - start, end == len(sequence.token_ids)))

    def _chunk_end(self, sequence: Sequence, budget: int) -> int:
        start = sequence.computed_count
        end = min(sequence.ceiling(self._rows.ready_count), start + budget)
        clipped = sequence.clip(start, end)
        sequence.held_up = clipped <= start < end
        return clipped

    def _stalled(self, sequence: Sequence) -> bool:
        return sequence.ceiling(self._rows.ready_count) <= sequence.computed_count

    def _victim(self, asker: Sequence) -> Sequence | None:
        """Whom a running sequence preempts when blocks run out."""
        stalled = self._stalled_victims(asker, may_yield=True)
        younger = [sequence for sequence in self._running.values() if sequence.age > asker.age]
        return max(stalled or younger, key=_age, default=None)

    def _stalled_victims(self, asker: Sequence, *, may_yield: bool) -> list[Sequence]:
        """Sequences that cannot go on and that `asker` may preempt: younger ones, or those that yield."""
        return [
            sequence
            for sequence in self._running.values()
            if sequence is not asker
            and (sequence.age > asker.age or (may_yield and sequence.yield_count < MAX_YIELDS))
            and self._stalled(sequence)
        ]

    def _preempt(self, victim: Sequence, asker: Sequence, step: _Step) -> None:
        """Takes a sequence's blocks; it waits again and will be recomputed."""
        step.drop(victim)
        del self._running[victim.sequence_id]
        victim.yield_count += victim.age < asker.age
        self.preemption_count += 1
        self._start_again(victim)

    def _switch_grown(self) -> None:
        """Has sequences that became too long for what is in their blocks computed again."""
        grown, self._grown = self._grown, []
        for sequence in grown:
            # Others have ended with that token.
            if self._running.pop(sequence.sequence_id, None) is not None:
                sequence.switch()
                self._start_again(sequence)

    def _start_again(self, sequence: Sequence) -> None:
        """Lets a sequence wait for blocks, to be computed from its first token."""
        self._preempted.append(sequence.sequence_id)
        self._release(sequence)
        sequence.computed_count = 0
        sequence.held_up = False
        self.needs.start_again(sequence)
        self._wait(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.block_table)
        sequence.block_table = []

    def _register(self, sequence: Sequence, start: int) -> None:
        """Makes the blocks that a step has filled findable by their content."""
        first = start // self._blocks.block_size
        full = sequence.computed_count // self._blocks.block_size
        if first < full:
            hashes = hashes_of(sequence, full, self._blocks.block_size)
            for index in range(first, full):
                self._blocks.register(sequence.block_table[index], hashes[index])

    # Sequences that wait for blocks.

    def _wait(self, sequence: Sequence) -> None:
        insort(self._waiting, sequence, key=_age)
        self.needs.ask(sequence, self._prefix_length(sequence))

    def _find(self, sequence: Sequence) -> list[int]:
        """Cached blocks of the sequence's longest usable prefix.

        The last known token is always left over, as its logits choose the next
        one; and a prefix never ends inside an unsplittable span.
        """
        size = self._blocks.block_size
        found = self._blocks.find(hashes_of(sequence, (len(sequence.token_ids) - 1) // size, size))
        count = len(found)
        while (end := sequence.clip(0, count * size)) < count * size:
            count = end // size
        return found[:count]

    def _prefix_length(self, sequence: Sequence) -> int:
        return len(self._find(sequence)) * self._blocks.block_size

    def _admit_waiting(self, step: _Step) -> None:
        """Gives blocks to waiting sequences, oldest first, while there are seats and budget."""
        able = [sequence for sequence in self._running.values() if not self._stalled(sequence)]
        runnable, under_way = len(able), UnderWay(self._blocks, able)
        passed: list[Sequence] = []
        for sequence in list(self._waiting):
            if step.full or runnable >= self._max_num_seqs:
                break
            prefix = self._prefix(sequence)
            if prefix.ceiling <= prefix.length or under_way.computes(sequence, prefix.length):
                continue
            if self._make_room(sequence, prefix, step):
                self._admit(sequence, prefix, step)
                under_way.note(sequence)
                runnable += 1
                for other in passed:
                    other.passed_count += 1
            elif prefix.complete or sequence.passed_count >= PATIENCE:
                break
            else:
                passed.append(sequence)

    def _prefix(self, sequence: Sequence) -> _Prefix:
        """Looks a waiting sequence up in the cache, and asks for the rows that it lacks."""
        blocks = self._find(sequence)
        length = len(blocks) * self._blocks.block_size
        self.needs.ask(sequence, length)
        self.needs.note_used(sequence, length)
        ceiling = sequence.ceiling(self._rows.ready_count, length)
        return _Prefix(blocks, length, ceiling, ceiling == len(sequence.token_ids))

    def _make_room(self, sequence: Sequence, prefix: _Prefix, step: _Step) -> bool:
        """Sees to it that a waiting sequence finds its blocks, if stalled ones can give them."""

        def shortage() -> int:
            fresh = self._blocks.blocks_for(prefix.ceiling) - len(prefix.blocks)
            return fresh + self._blocks.free_among(prefix.blocks) - self._blocks.free_count

        def fits() -> bool:
            return shortage() <= 0 and (self._max_held is None or len(self._running) < self._max_held)

        if fits():
            return True
        victims = self._stalled_victims(sequence, may_yield=prefix.complete)
        if shortage() > sum(len(victim.block_table) for victim in victims):
            return False
        for victim in sorted(victims, key=_age, reverse=True):
            self._preempt(victim, sequence, step)
            if fits():
                return True
        return False

    def _admit(self, sequence: Sequence, prefix: _Prefix, step: _Step) -> None:
        """Gives a waiting sequence blocks up to its ceiling."""
        self._blocks.hold(prefix.blocks)
        fresh = self._blocks.blocks_for(prefix.ceiling) - len(prefix.blocks)
        sequence.block_table = prefix.blocks + self._blocks.allocate(fresh)
        sequence.computed_count = prefix.length
        sequence.passed_count = 0
        self._waiting.remove(sequence)
        self._running[sequence.sequence_id] = sequence
        self._count_prefix(sequence, prefix.length)
        self._advance(sequence, step)

    def _count_prefix(self, sequence: Sequence, cached_count: int) -> None:
        """Counts a look-up in the prefix cache, once for each sequence."""
        if sequence.cached_count is None:
            sequence.cached_count = min(cached_count, sequence.prompt_length)
            self.prefix_query_count += sequence.prompt_length
            self.prefix_hit_count += sequence.cached_count


def _age(sequence: Sequence) -> tuple[float, int]:
    return sequence.age


def _precedence(sequence: Sequence) -> tuple[bool, bool, tuple[float, int]]:
    missing = len(sequence.token_ids) - sequence.computed_count
    return (not sequence.held_up, missing > 1, sequence.age)
