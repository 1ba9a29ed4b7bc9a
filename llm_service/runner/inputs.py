"""One scheduled batch to the flat tensors that a step computes with.

Knows tokens, positions, slots and block tables. Does not know the model, the
media or how tokens are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llm_service.engine.batch import ScheduledBatch, ScheduledSequence
from llm_service.runner.attention.context import MutualSpan, StepShape
from llm_service.runner.static_buffer import Fence, StaticBuffer


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A batch, flattened: decoding sequences first, the longest at the front, then chunks.

    Attributes:
        items: the batch's items in this order.
        rows: first flat row of each item.
        token_ids: int64 (tokens,).
        positions: int64 (axes, tokens).
        shape: slots, block tables and lengths.
        fresh_blocks: int64 (n,), blocks that get their first token in this
            step and are not filled by it.
        sampled: int64 (items that sample,), flat rows whose logits are needed,
            in the order of `items`.
    """

    items: list[ScheduledSequence]
    rows: list[int]
    token_ids: torch.Tensor
    positions: torch.Tensor
    shape: StepShape
    fresh_blocks: torch.Tensor
    sampled: torch.Tensor


class InputBuffers:
    """The static buffers of a runner and how a batch fills them.

    The tensors of one `fill` are overwritten by the next.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        max_sequences: int,
        max_blocks: int,
        block_size: int,
        axes: int,
        device: torch.device,
    ) -> None:
        self._block_size = block_size
        self._axes = axes
        self._fence = Fence(device)
        self._token_ids = StaticBuffer((max_tokens,), torch.int64, device)
        self._positions = StaticBuffer((axes, max_tokens), torch.int64, device)
        self._slots = StaticBuffer((max_tokens,), torch.int64, device)
        self._tables = StaticBuffer((max_sequences, max_blocks), torch.int64, device)
        self._query_starts = StaticBuffer((max_sequences + 1,), torch.int32, device)
        self._lengths = StaticBuffer((max_sequences,), torch.int32, device)
        self._fresh = StaticBuffer((max_sequences,), torch.int64, device)
        self._sampled = StaticBuffer((max_sequences,), torch.int64, device)

    def fill(self, batch: ScheduledBatch) -> StepInputs:
        """Flattens a batch of at least one item."""
        # A step of which no token is read may still be under way.
        self._fence.wait()
        items, decode_count = _ordered(batch)
        rows = self._fill_rows(items)
        total = rows[-1] + items[-1].count
        positions = self._positions.part(self._axes, total)
        for row, item in zip(rows, items, strict=True):
            self._fill_tokens(row, item, positions)
        step = StepInputs(
            items=items,
            rows=rows,
            token_ids=self._token_ids.publish(slice(total)),
            positions=self._positions.publish_part(self._axes, total),
            shape=self._shape(items, decode_count, total),
            fresh_blocks=self._fresh_blocks(items),
            sampled=self._sampled_rows(items, rows),
        )
        self._fence.record()
        return step

    def _fill_rows(self, items: list[ScheduledSequence]) -> list[int]:
        counts = [item.count for item in items]
        starts = self._query_starts.array
        starts[0] = 0
        np.cumsum(counts, out=starts[1 : len(items) + 1])
        self._lengths.array[: len(items)] = [item.start + item.count for item in items]
        rows: list[int] = starts[: len(items)].tolist()
        return rows

    def _fill_tokens(self, row: int, item: ScheduledSequence, positions: npt.NDArray[Any]) -> None:
        sequence, start, count = item.sequence, item.start, item.count
        table = sequence.block_table
        if count == 1 and start >= sequence.prompt_length:
            # Decoding is nearly every item of nearly every step: no slices, no arrays.
            self._token_ids.array[row] = sequence.token_ids[start]
            positions[:, row] = sequence.next_position + (start - sequence.prompt_length)
            block, offset = divmod(start, self._block_size)
            self._slots.array[row] = table[block] * self._block_size + offset
            return
        rows = slice(row, row + count)
        self._token_ids.array[rows] = sequence.token_ids[start : start + count]
        positions[:, rows] = sequence.positions_of(start, count)
        index = np.arange(start, start + count)
        blocks = np.asarray(table, dtype=np.int64)[index // self._block_size]
        self._slots.array[rows] = blocks * self._block_size + index % self._block_size

    def _shape(self, items: list[ScheduledSequence], decode_count: int, total: int) -> StepShape:
        widths = [-(-(item.start + item.count) // self._block_size) for item in items]
        widest = max(widths)
        tables = self._tables.part(len(items), widest)
        for index, (item, width) in enumerate(zip(items, widths, strict=True)):
            table = item.sequence.block_table
            tables[index, :width] = table[:width]
            tables[index, width:] = table[0]
        return StepShape(
            starts=[item.start for item in items],
            counts=[item.count for item in items],
            decode_count=decode_count,
            slots=self._slots.publish(slice(total)),
            block_tables=self._tables.publish_part(len(items), widest),
            query_starts=self._query_starts.publish(slice(len(items) + 1)),
            lengths=self._lengths.publish(slice(len(items))),
            mutual=tuple(_mutual_spans(items)),
        )

    def _fresh_blocks(self, items: list[ScheduledSequence]) -> torch.Tensor:
        """The last block of each item that starts it and leaves slots of it unwritten."""
        fresh = []
        for item in items:
            end = item.start + item.count
            opened = end - end % self._block_size
            if item.start <= opened < end:
                fresh.append(item.sequence.block_table[opened // self._block_size])
        self._fresh.array[: len(fresh)] = fresh
        return self._fresh.publish(slice(len(fresh)))

    def _sampled_rows(self, items: list[ScheduledSequence], rows: list[int]) -> torch.Tensor:
        sampled = [row + item.count - 1 for row, item in zip(rows, items, strict=True) if item.samples]
        self._sampled.array[: len(sampled)] = sampled
        return self._sampled.publish(slice(len(sampled)))


def _mutual_spans(items: list[ScheduledSequence]) -> Iterator[MutualSpan]:
    """The unsplittable spans among the step's tokens; one of a single token is as good as causal."""
    for index, item in enumerate(items):
        sequence, end = item.sequence, item.start + item.count
        if item.count == 1 or item.start >= sequence.prompt_length:
            continue
        for span in sequence.spans:
            if not span.splittable and span.length > 1 and item.start <= span.start < end:
                assert span.start + span.length <= end, "a chunk cuts an unsplittable span"
                yield MutualSpan(index, span.start, span.start + span.length)


def _ordered(batch: ScheduledBatch) -> tuple[list[ScheduledSequence], int]:
    """Items of one token by falling length, then the others; and how many of the former."""
    singles = [item for item in batch.items if item.count == 1]
    singles.sort(key=lambda item: item.start, reverse=True)
    chunks = [item for item in batch.items if item.count > 1]
    return singles + chunks, len(singles)
