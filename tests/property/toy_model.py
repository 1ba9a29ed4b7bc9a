"""A tiny language model in integers, computed through block tables, and its plain reference.

Two layers of "attention" that mix every visible slot, in exact 64-bit
arithmetic: a slot that was never written, belongs to another prefix or was
computed from other rows gives other tokens. The reference computes the same
function without blocks, chunks or caches.

Tokens of an unsplittable span see the whole span, as in models with
bidirectional media attention. A prompt's variant and a length that the sequence has
passed go into every slot, as adapters and switched frequencies do.
"""

from __future__ import annotations

from collections.abc import Sequence as Run
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_service.engine.batch import RowSource, SampledToken, ScheduledBatch, ScheduledSequence
from llm_service.engine.messages import SpanMessage, StoppingSettings
from llm_service.engine.sequence import Sequence

VOCABULARY_SIZE = 11
PLACEHOLDER_ID = 10
VARIANTS = ("", "other")

Words = npt.NDArray[np.uint64]


def mix(*values: Words) -> Words:
    """Scrambles 64-bit words, elementwise, so that any change shows everywhere."""
    state: Words = np.asarray(0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for value in values:
            state = (value ^ state) * np.uint64(0xBF58476D1CE4E5B9)
            state = state ^ (state >> np.uint64(29))
            state = state * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(32))
    return np.asarray(state)


def words(values: Run[int] | npt.NDArray[np.int64]) -> Words:
    return np.asarray(values, dtype=np.int64).astype(np.uint64)


def total(values: Words) -> Words:
    """Order-sensitive sum: each word is mixed with its place first."""
    with np.errstate(over="ignore"):
        return np.asarray(mix(values, words(range(len(values)))).sum(dtype=np.uint64))


def visible_end(index: int, spans: Run[SpanMessage]) -> int:
    for span in spans:
        if not span.splittable and span.start <= index < span.start + span.length:
            return span.start + span.length
    return index + 1


def first_layer(inputs: Words, positions: npt.NDArray[np.int64], variant: str, switched: bool) -> Words:
    way = words([2 * VARIANTS.index(variant) + switched])
    return mix(inputs, way, *(words(axis) for axis in positions))


def choose(second: Words, masked: Run[int]) -> int:
    """The next token, from all second-layer slots; a masked one gives way to its successor."""
    token = int(total(second)) % VOCABULARY_SIZE
    while token in masked:
        token = (token + 1) % VOCABULARY_SIZE
    return token


@dataclass(repr=False)
class Prompt:
    """A prompt with the words that its placeholders stand for."""

    token_ids: list[int]
    positions: npt.NDArray[np.int64]
    next_position: int
    spans: list[SpanMessage]
    rows: dict[str, Words]
    stopping: StoppingSettings
    variant: str = ""

    def __repr__(self) -> str:
        spans = [(span.key[0], span.start, span.splittable) for span in self.spans]
        return f"Prompt({self.token_ids}, spans={spans}, {len(self.positions)} axes, {self.stopping})"


def reference_tokens(prompt: Prompt, max_model_len: int, switch_length: int | None = None) -> list[int]:
    """Generates token by token, each time from the whole context."""
    token_ids = list(prompt.token_ids)
    length = len(token_ids)
    while True:
        positions = np.concatenate([prompt.positions, _continued(prompt, len(token_ids) - length)], axis=1)
        switched = switch_length is not None and len(token_ids) > switch_length
        first = first_layer(_inputs(prompt, token_ids), positions, prompt.variant, switched)
        second = np.array(
            [mix(first[i], total(first[: visible_end(i, prompt.spans)])) for i in range(len(first))],
            dtype=np.uint64,
        )
        count = len(token_ids) - length
        early = count < prompt.stopping.min_token_count
        token_ids.append(choose(second, prompt.stopping.stop_token_ids if early else []))
        count += 1
        if token_ids[-1] in prompt.stopping.stop_token_ids or count >= prompt.stopping.max_token_count:
            return token_ids[length:]
        if len(token_ids) >= max_model_len:
            return token_ids[length:]


def _continued(prompt: Prompt, count: int) -> npt.NDArray[np.int64]:
    line = np.arange(prompt.next_position, prompt.next_position + count, dtype=np.int64)
    return np.broadcast_to(line, (prompt.positions.shape[0], count))


def _inputs(prompt: Prompt, token_ids: list[int]) -> Words:
    inputs = words(token_ids)
    for span in prompt.spans:
        rows = prompt.rows[span.key][span.first_row : span.first_row + span.length]
        inputs[span.start : span.start + span.length] = rows
    return inputs


class ToyRunner:
    """The toy model over a pool of blocks; checks that batches keep their promises."""

    def __init__(
        self,
        block_count: int,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_held: int | None = None,
    ) -> None:
        self.block_count = block_count
        self._max_held = max_held
        self._reached: dict[int, int] = {}
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        garbage = np.random.default_rng(1).integers(1, 2**63, (2, block_count * block_size))
        self._slots = garbage.astype(np.uint64)
        self.forgotten: list[int] = []
        self.broken: set[int] = set()
        self.speechless: set[int] = set()

    def run(self, batch: ScheduledBatch, rows: RowSource) -> list[SampledToken]:
        self._check(batch)
        self._keep_states(batch)
        for layer in (0, 1):
            for item in batch.items:
                self._write(item, rows, layer)
        return [self._sample(item) for item in batch.items if item.samples]

    def forget(self, sequence_id: int) -> None:
        self.forgotten.append(sequence_id)
        self._reached.pop(sequence_id, None)

    def _keep_states(self, batch: ScheduledBatch) -> None:
        """Books a state for each sequence, as for linear layers: no token is skipped or repeated."""
        for sequence_id in batch.preempted:
            self._reached.pop(sequence_id, None)
        for item in batch.items:
            sequence_id = item.sequence.sequence_id
            if sequence_id in self._reached:
                assert self._reached[sequence_id] == item.start, "a preemption was not told"
            self._reached[sequence_id] = item.start + item.count
        assert self._max_held is None or len(self._reached) <= self._max_held, "too many states"

    def _check(self, batch: ScheduledBatch) -> None:
        assert 0 < len(batch.items) <= self._max_num_seqs
        assert batch.token_count <= self._max_num_batched_tokens
        written: list[int] = []
        for item in batch.items:
            sequence = item.sequence
            if sequence.sequence_id in self.broken:
                raise RuntimeError("a broken sequence")
            assert item.count > 0 and item.start == sequence.computed_count
            assert item.samples == (item.start + item.count == len(sequence.token_ids))
            written.extend(self._slots_of(sequence, item.start, item.start + item.count))
        assert len(set(written)) == len(written), "two parts write to one slot"

    def _slots_of(self, sequence: Sequence, start: int, end: int) -> list[int]:
        size = self._block_size
        return [sequence.block_table[i // size] * size + i % size for i in range(start, end)]

    def _write(self, item: ScheduledSequence, rows: RowSource, layer: int) -> None:
        sequence, end = item.sequence, item.start + item.count
        slots = self._slots_of(sequence, item.start, end)
        if layer == 0:
            inputs = self._read_inputs(item, rows)
            positions = sequence.positions_of(item.start, item.count)
            self._slots[0, slots] = first_layer(inputs, positions, sequence.variant, sequence.switched)
            return
        for index, slot in zip(range(item.start, end), slots, strict=True):
            seen = self._slots_of(sequence, 0, visible_end(index, sequence.spans))
            self._slots[1, slot] = mix(self._slots[0, slot], total(self._slots[0, seen]))

    def _read_inputs(self, item: ScheduledSequence, rows: RowSource) -> Words:
        start, end = item.start, item.start + item.count
        inputs = words(item.sequence.token_ids[start:end])
        for span in item.sequence.spans:
            first, last = max(start, span.start), min(end, span.start + span.length)
            if first < last:
                row = span.first_row + first - span.start
                data = rows.rows(span.key, "embeds", row, last - first)
                inputs[first - start : last - start] = np.frombuffer(data, dtype=np.uint32)
        return inputs

    def _sample(self, item: ScheduledSequence) -> SampledToken:
        sequence = item.sequence
        if sequence.sequence_id in self.speechless:
            return SampledToken(sequence.sequence_id, -1, failure="not finite")
        slots = self._slots_of(sequence, 0, len(sequence.token_ids))
        return SampledToken(sequence.sequence_id, choose(self._slots[1, slots], sequence.masked_token_ids))
