"""The reference backend: paged attention with torch's SDPA, on any device.

Decoding sequences are batched: their blocks are gathered into one padded
tensor per group of similar length. Chunks run one sequence at a time. Knows
groups and gathers; does not know who writes the cache or when.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from llm_service.runner.attention.context import StepShape
from llm_service.runner.attention.masks import TILE, Staircases, length_mask, reach_mask
from llm_service.runner.kv_cache import KvCache

CACHED_BYTES = 4 << 20
"""Most keys gathered for one group of sequences on CPU: the copy is still in the caches when read."""

LAUNCHED_BYTES = 256 << 20
"""The same elsewhere, where one large call beats several small ones: bounds the memory alone."""

SMALL_TABLE = 8
"""Tables up to this many blocks share a group whatever their lengths: a call costs more than padding."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decoding sequences `first` to `last` (exclusive), read through tables of `width` blocks."""

    first: int
    last: int
    width: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence's tokens of this step: flat rows `row` on, positions `start` on."""

    sequence: int
    row: int
    start: int
    count: int


class SdpaBackend:
    """Gathers blocks and calls `scaled_dot_product_attention`."""

    name = "sdpa"

    def __init__(self) -> None:
        self._staircases = Staircases()
        self._scratch = Scratch()

    def plan(self, cache: KvCache, shape: StepShape) -> SdpaStep:
        return SdpaStep(cache, shape, self._staircases, self._scratch)


class Scratch:
    """Memory that every layer gathers its blocks into, one after the other.

    Fresh memory of this size would come from the system page by page, which
    takes longer than the copy itself.
    """

    def __init__(self) -> None:
        self._parts: list[torch.Tensor | None] = [None, None]

    def gather(self, part: int, cache: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """Copies blocks of one layer: (n, block_size, kv_heads, head_dim), valid until the next call.

        Args:
            part: 0 for keys, 1 for values; each has its own memory.
            cache: (blocks, block_size, kv_heads, head_dim).
            blocks: int64 (n,).
        """
        count = blocks.shape[0]
        memory = self._parts[part]
        if memory is None or memory.shape[0] < count:
            memory = cache.new_empty((max(count, 0 if memory is None else 2 * len(memory)), *cache.shape[1:]))
            self._parts[part] = memory
        return torch.index_select(cache, 0, blocks, out=memory[:count])


class SdpaStep:
    """The plan of one step. Decoding rows come first in the batch, longest first."""

    def __init__(self, cache: KvCache, shape: StepShape, staircases: Staircases, scratch: Scratch) -> None:
        self._cache = cache
        self._shape = shape
        self._staircases = staircases
        self._scratch = scratch
        self._groups = list(_decode_groups(shape, cache))
        self._tables = [_gather_index(shape, group) for group in self._groups]
        self._chunks = list(_chunks(shape))
        self._chunk_blocks = [
            shape.block_tables[chunk.sequence, : -(-(chunk.start + chunk.count) // cache.block_size)]
            for chunk in self._chunks
        ]
        self._length_masks: dict[int | None, list[torch.Tensor]] = {}
        self._reaches = [_reach(shape, chunk) for chunk in self._chunks]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        if len(self._groups) == 1 and not self._chunks:
            return self._decode(layer, 0, query, scaling, window)
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        for index, group in enumerate(self._groups):
            rows = slice(group.first, group.last)
            output[rows] = self._decode(layer, index, query[rows], scaling, window)
        for index, chunk in enumerate(self._chunks):
            rows = slice(chunk.row, chunk.row + chunk.count)
            if chunk.start == 0 and window is None and self._reaches[index] is None:
                # A whole prefix: its keys are this step's own, and SDPA knows the mask.
                output[rows] = _attend(query[rows], key[rows], value[rows], None, scaling)
            else:
                self._chunk(layer, index, query[rows], output[rows], scaling, window)
        return output

    def _decode(
        self, layer: int, index: int, query: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        """One padded call for a group: (sequences, heads, head_dim) to the same.

        The heads that share a key head stand as query rows of that head, so
        that keys are neither repeated nor read twice.
        """
        sequences, heads, width = query.shape
        keys = self._gather(0, self._cache.keys[layer], index, sequences)
        values = self._gather(1, self._cache.values[layer], index, sequences)
        rows = query.reshape(sequences, keys.shape[1], heads // keys.shape[1], width)
        mask = self._length_mask(index, window, query)
        output = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
        return output.reshape(sequences, heads, width)

    def _gather(self, part: int, cache: torch.Tensor, index: int, sequences: int) -> torch.Tensor:
        """A group's blocks as (sequences, kv_heads, slots, head_dim)."""
        gathered = self._scratch.gather(part, cache, self._tables[index])
        return gathered.view(sequences, -1, *cache.shape[2:]).transpose(1, 2)

    def _length_mask(self, index: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        if window not in self._length_masks:
            lengths, size = self._shape.lengths, self._cache.block_size
            self._length_masks[window] = [
                length_mask(lengths[group.first : group.last], group.width * size, window, like)
                for group in self._groups
            ]
        return self._length_masks[window][index]

    def _chunk(
        self,
        layer: int,
        index: int,
        query: torch.Tensor,
        output: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> None:
        """A chunk over its sequence's blocks, tile by tile, into `output`."""
        chunk, blocks = self._chunks[index], self._chunk_blocks[index]
        keys = self._scratch.gather(0, self._cache.keys[layer], blocks).flatten(0, 1)
        values = self._scratch.gather(1, self._cache.values[layer], blocks).flatten(0, 1)
        reach = self._reaches[index]
        for first in range(0, chunk.count, TILE):
            rows = min(TILE, chunk.count - first)
            end = chunk.start + first + rows
            begin = 0 if window is None else max(0, chunk.start + first - window + 1)
            if reach is None:
                mask = self._staircases.tile(rows, end - rows - begin, window, query)
            else:
                seen = reach[first : first + rows]
                end = int(seen.max())
                mask = reach_mask(seen, chunk.start + first, begin, window, query)
            tile = query[first : first + rows]
            output[first : first + rows] = _attend(tile, keys[begin:end], values[begin:end], mask, scaling)


def _decode_groups(shape: StepShape, cache: KvCache) -> Iterator[DecodeGroup]:
    """Cuts the decoding sequences, longest first, where padding would more than double the reads."""
    keys = cache.keys[0]
    budget = CACHED_BYTES if keys.device.type == "cpu" else LAUNCHED_BYTES
    most = budget // (keys[0].numel() * keys.itemsize)
    first, width = 0, 0
    for index in range(shape.decode_count):
        blocks = shape.starts[index] // cache.block_size + 1
        full = (index - first + 1) * width > most
        if index > first and (full or (width > SMALL_TABLE and 2 * blocks < width)):
            yield DecodeGroup(first, index, width)
            first, width = index, blocks
        width = max(width, blocks)
    if shape.decode_count:
        yield DecodeGroup(first, shape.decode_count, width)


def _chunks(shape: StepShape) -> Iterator[Chunk]:
    row = shape.decode_count
    for sequence in range(shape.decode_count, len(shape.counts)):
        yield Chunk(sequence, row, shape.starts[sequence], shape.counts[sequence])
        row += shape.counts[sequence]


def _reach(shape: StepShape, chunk: Chunk) -> torch.Tensor | None:
    """How many keys each token of a chunk sees, int64 (count,) on the host; None where all are causal."""
    spans = [span for span in shape.mutual if span.sequence == chunk.sequence]
    if not spans:
        return None
    reach = torch.arange(chunk.start + 1, chunk.start + chunk.count + 1)
    for span in spans:
        reach[span.first - chunk.start : span.end - chunk.start] = span.end
    return reach


def _gather_index(shape: StepShape, group: DecodeGroup) -> torch.Tensor:
    return shape.block_tables[group.first : group.last, : group.width].flatten()


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of one sequence, (tokens, heads, head_dim); without a mask causal over equal lengths.

    Key heads stand as the batch and the heads that share one as its heads, so
    that keys are viewed, not repeated.
    """
    tokens, heads, width = query.shape
    shared = heads // key.shape[1]
    rows = query.reshape(tokens, key.shape[1], shared, width).permute(1, 2, 0, 3)
    keys = key.transpose(0, 1)[:, None].expand(-1, shared, -1, -1)
    values = value.transpose(0, 1)[:, None].expand(-1, shared, -1, -1)
    output = scaled_dot_product_attention(
        rows, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling
    )
    return output.flatten(0, 1).transpose(0, 1)
