"""The inputs of a step that only decodes, at addresses that never change.

One row per sequence, in the order of the batch; rows that fill the batch up
read and write a block that nobody owns. Knows where a row's numbers lie and how
few of them a step must send to the device. Does not know graphs or models.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Items

import numpy as np
import torch

from llm_service.engine.batch import ScheduledSequence
from llm_service.runner.attention.context import StepShape
from llm_service.runner.static_buffer import StaticBuffer

DENSE_SIZES = (1, 2, 4, 8)
SIZE_STEP = 8


def padded_sizes(most: int) -> list[int]:
    """The batch sizes that steps are filled up to: 1, 2, 4, 8, then every eighth, and `most`."""
    sizes = [size for size in DENSE_SIZES if size < most]
    sizes += range(SIZE_STEP * 2, most, SIZE_STEP)
    return [*sizes, most]


def padded_size(count: int, sizes: Items[int]) -> int:
    """The least of the rising `sizes` that holds `count` rows."""
    return sizes[bisect_left(sizes, count)]


def only_decodes(items: Items[ScheduledSequence]) -> bool:
    """Whether every item is the one generated token of a sequence that wants the next."""
    return all(
        item.count == 1 and item.samples and item.start >= item.sequence.prompt_length for item in items
    )


class DecodeRows:
    """Tokens, slots, lengths, positions and block tables of up to `capacity` sequences.

    Block tables lie with the sequences innermost, so that the blocks in use are
    one piece of memory, and a row that did not change is not written again.

    Args:
        capacity: most sequences.
        max_blocks: longest block table.
        scratch_block: block of the rows that only fill up.
        axes: rows of the model's positions, 1 or 3.
    """

    def __init__(
        self,
        capacity: int,
        max_blocks: int,
        block_size: int,
        scratch_block: int,
        axes: int,
        device: torch.device,
    ) -> None:
        self._block_size = block_size
        self._scratch_block = scratch_block
        self._max_blocks = max_blocks
        self._numbers = StaticBuffer((3 + axes, capacity), torch.int64, device)
        self._tables = StaticBuffer((max_blocks, capacity), torch.int32, device)
        self._query_starts = torch.arange(capacity + 1, dtype=torch.int32, device=device)
        self._written: list[list[int]] = [[] for _ in range(capacity)]
        self.fill([], capacity)

    def fill(self, items: Items[ScheduledSequence], size: int) -> None:
        """Sends the rows of `items`, and of as many more as make `size`, to the device."""
        numbers = self._numbers.array
        width = 1
        for row, item in enumerate(items):
            table = item.sequence.block_table
            self._write_table(row, table)
            block, offset = divmod(item.start, self._block_size)
            sequence = item.sequence
            numbers[0, row] = sequence.token_ids[item.start]
            numbers[1, row] = table[block] * self._block_size + offset
            numbers[2, row] = item.start + 1
            numbers[3:, row] = sequence.next_position + (item.start - sequence.prompt_length)
            width = max(width, block + 1)
        self._fill_up(len(items), size)
        self._numbers.publish()
        self._tables.publish(slice(width))

    def _fill_up(self, count: int, size: int) -> None:
        """Rows `count` to `size`: token 0 at the first slot of the scratch block, seeing itself alone."""
        numbers = self._numbers.array
        numbers[:, count:size] = np.array(
            [[0], [self._scratch_block * self._block_size], [1]] + [[0]] * (len(numbers) - 3)
        )
        for row in range(count, size):
            self._write_table(row, [self._scratch_block])

    def _write_table(self, row: int, table: list[int]) -> None:
        """Writes what differs from the row's last table: mostly nothing, else a new block at the end."""
        written = self._written[row]
        known = len(written)
        if known <= len(table) and table[:known] == written:
            if known < len(table):
                self._tables.array[known : len(table), row] = table[known:]
                written.extend(table[known:])
            return
        self._tables.array[: len(table), row] = table
        self._written[row] = list(table)

    def token_ids(self, size: int) -> torch.Tensor:
        """int64 (size,) on the device."""
        return self._numbers.device_part(0, slice(size))

    def positions(self, size: int) -> torch.Tensor:
        """int64 (axes, size) on the device."""
        return self._numbers.device_part(slice(3, None), slice(size))

    def shape(self, size: int) -> StepShape:
        """A step of `size` sequences whose lengths are known on the device alone: the longest is assumed."""
        longest = self._max_blocks * self._block_size
        return StepShape(
            starts=[longest - 1] * size,
            counts=[1] * size,
            decode_count=size,
            slots=self._numbers.device_part(1, slice(size)),
            block_tables=self._tables.device_part(slice(None), slice(size)).t(),
            query_starts=self._query_starts[: size + 1],
            lengths=self._numbers.device_part(2, slice(size)).to(torch.int32),
        )
