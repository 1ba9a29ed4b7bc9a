"""The front's side of the engine, in one thread: prompts, an arena, and what came back.

Overwrites rows before they are ready and after they are closed, so that a
reader at a wrong time gets a wrong answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from collections.abc import Sequence as Run
from dataclasses import dataclass, field

import numpy as np

from llm_service.engine.engine import Engine
from llm_service.engine.messages import (
    AddSequence,
    ArenaTensor,
    CancelSequence,
    CloseEmbeddings,
    EmbeddingRowsReady,
    EmbeddingsClosed,
    OpenEmbeddings,
    RowsNeeded,
    SamplingSettings,
    SequenceFailed,
    SequenceRefused,
    SpanMessage,
    StepReport,
    StoppingSettings,
    TokenReport,
)
from tests.property.toy_model import PLACEHOLDER_ID, Prompt, ToyRunner, Words, reference_tokens

ITEM_ROWS = {"a" * 64: 3, "b" * 64: 5, "c" * 64: 9, "d" * 64: 5}
"""Items by key, with their numbers of rows. Two have the same number."""

REGION_BYTES = 64


class Arena:
    """Plain memory with a region for each item."""

    def __init__(self) -> None:
        self.memory = bytearray(REGION_BYTES * len(ITEM_ROWS))

    def view(self, offset: int, byte_count: int, /) -> memoryview:
        return memoryview(self.memory)[offset : offset + byte_count]


def item_rows(key: str) -> Words:
    """The rows of an item, one 32-bit word each."""
    generator = np.random.default_rng(ord(key[0]))
    return generator.integers(100, 2**32, ITEM_ROWS[key], dtype=np.uint32).astype(np.uint64)


def make_prompt(
    parts: Run[int | str],
    stopping: StoppingSettings,
    *,
    axes: int = 1,
    unsplittable: Collection[str] = (),
    variant: str = "",
) -> Prompt:
    """Lays out a prompt of token ids and item keys, with positions that jump after an item."""
    token_ids: list[int] = []
    columns: list[list[int]] = []
    spans: list[SpanMessage] = []
    next_position = 0
    for part in parts:
        if isinstance(part, int):
            token_ids.append(part)
            columns.append([next_position] * axes)
            next_position += 1
            continue
        count = ITEM_ROWS[part]
        spans.append(SpanMessage(part, len(token_ids), count, part not in unsplittable))
        token_ids.extend([PLACEHOLDER_ID] * count)
        columns.extend([next_position + row // (axis + 1) for axis in range(axes)] for row in range(count))
        next_position += count
    rows = {span.key: item_rows(span.key) for span in spans}
    positions = np.array(columns, dtype=np.int64).T
    return Prompt(token_ids, positions, next_position, spans, rows, stopping, variant)


@dataclass
class Answer:
    """What the engine said about one sequence."""

    prompt: Prompt
    reports: list[TokenReport] = field(default_factory=list)
    ended: bool = False
    refused: bool = False
    failed: bool = False
    cancelled: bool = False

    @property
    def token_ids(self) -> list[int]:
        return [report.token_id for report in self.reports]


class ToyFront:
    """Talks to an engine over a toy runner, one message at a time."""

    def __init__(
        self,
        *,
        block_count: int = 12,
        block_size: int = 4,
        max_model_len: int = 1000,
        max_num_seqs: int = 3,
        max_num_batched_tokens: int = 16,
        max_held: int | None = None,
        enable_prefix_caching: bool = True,
        rests_for_encoders: bool = False,
        switch_length: int | None = None,
    ) -> None:
        self.arena = Arena()
        self.runner = ToyRunner(block_count, block_size, max_num_seqs, max_num_batched_tokens, max_held)
        self.engine = Engine(
            self.runner,
            self.arena,
            block_count=block_count,
            block_size=block_size,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_held=max_held,
            enable_prefix_caching=enable_prefix_caching,
            rests_for_encoders=rests_for_encoders,
            switch_length=switch_length,
        )
        self._switch_length = switch_length
        self.answers: dict[int, Answer] = {}
        self.ready: dict[str, int] = {}
        self.wanted: dict[str, list[int]] = {}
        self.used: list[tuple[int, str]] = []
        self.last_report: StepReport | None = None
        self._ids = itertools.count(1)
        self._garbage = np.random.default_rng(7)

    def add(self, prompt: Prompt, arrival: float | None = None, *, tokens_may_wait: bool = False) -> int:
        """Adds a sequence and returns its id."""
        sequence_id = next(self._ids)
        self.answers[sequence_id] = Answer(prompt)
        message = AddSequence(
            sequence_id=sequence_id,
            token_ids=np.array(prompt.token_ids, dtype="<i4").tobytes(),
            positions=prompt.positions.astype("<i4").tobytes(),
            axes=prompt.positions.shape[0],
            next_position=prompt.next_position,
            spans=prompt.spans,
            sampling=SamplingSettings(),
            stopping=prompt.stopping,
            arrival=float(sequence_id) if arrival is None else arrival,
            variant=prompt.variant,
            tokens_may_wait=tokens_may_wait,
        )
        self.engine.receive(message)
        self._collect()
        return sequence_id

    def cancel(self, sequence_id: int) -> None:
        """Cancels a sequence, be it alive or not."""
        self.answers[sequence_id].cancelled |= not self.answers[sequence_id].ended
        self.engine.receive(CancelSequence(sequence_id))

    def open(self, key: str) -> None:
        """Opens an item, no row of it there yet."""
        self._spoil(key)
        self.ready[key] = 0
        shape = (ITEM_ROWS[key], 1)
        tensor = ArenaTensor("embeds", "float32", shape, self._offset(key))
        self.engine.receive(OpenEmbeddings(key, [tensor]))

    def deliver(self, key: str, row_count: int | None = None) -> None:
        """Writes the next rows of an open item, all that are left by default."""
        end = ITEM_ROWS[key] if row_count is None else min(ITEM_ROWS[key], self.ready[key] + row_count)
        rows = item_rows(key)[:end].astype(np.uint32).tobytes()
        self.arena.memory[self._offset(key) : self._offset(key) + len(rows)] = rows
        self.ready[key] = end
        self.engine.receive(EmbeddingRowsReady(key, end))

    def close(self, key: str) -> None:
        """Closes an item and spoils its region once the engine has let go of it."""
        del self.ready[key]
        self.engine.receive(CloseEmbeddings(key))
        self._collect()
        assert key not in self.ready

    def step(self) -> bool:
        """Runs a step and checks the books."""
        ran = self.engine.step()
        self._collect()
        self.engine.check_integrity()
        return ran

    def serve_all(self, max_steps: int = 2000) -> None:
        """Delivers whatever is asked for until every sequence has ended."""
        for _ in range(max_steps):
            if not self.living():
                return
            self._serve_wanted()
            self.step()
        raise AssertionError(f"{self.living()} did not end in {max_steps} steps")

    def serve_slowly(self, capacity: int, row_count: int) -> None:
        """Delivers a few rows of what the oldest sequences want, with room for few items.

        As the front does: an item that younger ones want gives way to an older one's.
        """
        order = list(dict.fromkeys(self._still_wanted()))[:capacity]
        for key in list(self.ready):
            if key not in order:
                self.close(key)
        for key in order:
            if key not in self.ready:
                self.open(key)
            self.deliver(key, row_count)

    def _still_wanted(self) -> list[str]:
        """Items by the age of the sequence and by their place in its prompt."""
        used = set(self.used)
        return [
            span.key
            for sequence_id in self.living()
            for span in self.answers[sequence_id].prompt.spans
            if (sequence_id, span.key) not in used
        ]

    def living(self) -> list[int]:
        """Sequences that have not ended."""
        return [sequence_id for sequence_id, answer in self.answers.items() if not answer.ended]

    def check_answers(self) -> None:
        """Asserts that every answer is the reference's, or a beginning of it where it was cancelled."""
        for sequence_id, answer in self.answers.items():
            if answer.refused or answer.failed:
                continue
            expected = reference_tokens(answer.prompt, self.engine.max_model_len, self._switch_length)
            if answer.cancelled:
                expected = expected[: len(answer.token_ids)]
            assert answer.token_ids == expected, f"sequence {sequence_id}: {answer.token_ids} for {expected}"

    def _serve_wanted(self) -> None:
        for key in [*self.wanted, *self.ready]:
            if key not in self.ready:
                self.open(key)
            if self.ready[key] < ITEM_ROWS[key]:
                self.deliver(key)
        self.wanted.clear()

    def _collect(self) -> None:
        for message in self.engine.take_messages():
            match message:
                case StepReport():
                    self._collect_report(message)
                case RowsNeeded():
                    for key in message.keys:
                        # Used before, but needed again after a preemption.
                        used = (message.sequence_id, key)
                        self.used = [pair for pair in self.used if pair != used]
                        assert key not in self.ready, "an open item is asked for"
                        self.wanted.setdefault(key, []).append(message.sequence_id)
                case EmbeddingsClosed():
                    self._spoil(message.key)
                case SequenceRefused():
                    self.answers[message.sequence_id].refused = True
                case SequenceFailed():
                    self.answers[message.sequence_id].failed = True

    def _collect_report(self, report: StepReport) -> None:
        self.last_report = report
        self.used.extend((used.sequence_id, used.key) for used in report.used)
        for token in report.tokens:
            answer = self.answers[token.sequence_id]
            assert not answer.ended and (token.first is not None) == (not answer.reports)
            answer.reports.append(token)
        for sequence_id in report.ended:
            assert not self.answers[sequence_id].ended, "an end is told twice"
            self.answers[sequence_id].ended = True

    def _offset(self, key: str) -> int:
        return REGION_BYTES * list(ITEM_ROWS).index(key)

    def _spoil(self, key: str) -> None:
        offset = self._offset(key)
        self.arena.memory[offset : offset + REGION_BYTES] = self._garbage.bytes(REGION_BYTES)
