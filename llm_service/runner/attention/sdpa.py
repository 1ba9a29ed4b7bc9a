"""The reference backend: paged attention with torch's SDPA, on any device.

Decoding sequences are batched: their blocks are gathered into one padded
tensor per group of similar length. Chunks run one sequence at a time. Knows
masks and gathers; does not know who writes the cache or when.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from llm_service.runner.attention.context import StepShape
from llm_service.runner.kv_cache import KvCache

MASKED = float("-inf")
TILE = 128
"""Query rows of one masked call: bounds the mask, and skips keys that the whole tile may not see."""

GROUP_BLOCKS = 4096
"""Most blocks gathered for one group of decoding sequences: bounds the copy of their keys."""

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
    """Gathers blocks and calls `scaled_dot_product_attention`.

    Keeps the masks of chunks between steps: they depend on relative positions only.
    """

    name = "sdpa"

    def __init__(self) -> None:
        self._staircases: dict[int | None, torch.Tensor] = {}

    def plan(self, cache: KvCache, shape: StepShape) -> SdpaStep:
        return SdpaStep(self, cache, shape)

    def tile_mask(self, rows: int, before: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Additive mask (rows, before + rows) of query rows that follow `before` keys.

        A view of one staircase per window: row r of it sees relative keys up to
        r, so every tile of every sequence is a cut of the same matrix.
        """
        staircase = self._staircases.get(window)
        if staircase is None or staircase.shape[1] - TILE < before or staircase.dtype != like.dtype:
            reach = 1 << max(before, 256).bit_length()
            staircase = _staircase(reach, window, like)
            self._staircases[window] = staircase
        origin = staircase.shape[1] - TILE
        return staircase[:rows, origin - before : origin + rows]


class SdpaStep:
    """The plan of one step. Decoding rows come first in the batch, longest first."""

    def __init__(self, backend: SdpaBackend, cache: KvCache, shape: StepShape) -> None:
        self._backend = backend
        self._cache = cache
        self._shape = shape
        self._groups = list(_decode_groups(shape, cache.block_size))
        self._tables = [_gather_index(shape, group) for group in self._groups]
        self._chunks = list(_chunks(shape))
        self._chunk_blocks = [
            shape.block_tables[chunk.sequence, : -(-(chunk.start + chunk.count) // cache.block_size)]
            for chunk in self._chunks
        ]
        self._decode_masks: dict[int | None, list[torch.Tensor]] = {}

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
            if chunk.start == 0 and window is None:
                output[rows] = _causal(query[rows], key[rows], value[rows], scaling)
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
        keys = _gather(self._cache.keys[layer], self._tables[index], sequences)
        values = _gather(self._cache.values[layer], self._tables[index], sequences)
        rows = query.reshape(sequences, keys.shape[1], heads // keys.shape[1], width)
        mask = self._decode_mask(index, window, query)
        return scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling).reshape(
            sequences, heads, width
        )

    def _decode_mask(self, index: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        if window not in self._decode_masks:
            lengths, size = self._shape.lengths, self._cache.block_size
            self._decode_masks[window] = [
                _length_mask(lengths[group.first : group.last], group.width * size, window, like)
                for group in self._groups
            ]
        return self._decode_masks[window][index]

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
        keys = self._cache.keys[layer].index_select(0, blocks).flatten(0, 1)
        values = self._cache.values[layer].index_select(0, blocks).flatten(0, 1)
        for first in range(0, chunk.count, TILE):
            rows = min(TILE, chunk.count - first)
            end = chunk.start + first + rows
            begin = 0 if window is None else max(0, chunk.start + first - window + 1)
            mask = self._backend.tile_mask(rows, end - rows - begin, window, query)
            output[first : first + rows] = _grouped(
                query[first : first + rows], keys[begin:end], values[begin:end], mask, scaling
            )


def _decode_groups(shape: StepShape, block_size: int) -> Iterator[DecodeGroup]:
    """Cuts the decoding sequences, longest first, where padding would more than double the reads."""
    first, width = 0, 0
    for index in range(shape.decode_count):
        blocks = shape.starts[index] // block_size + 1
        full = (index - first + 1) * width > GROUP_BLOCKS
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


def _gather_index(shape: StepShape, group: DecodeGroup) -> torch.Tensor:
    return shape.block_tables[group.first : group.last, : group.width].flatten()


def _gather(cache: torch.Tensor, blocks: torch.Tensor, sequences: int) -> torch.Tensor:
    """Blocks of one layer to (sequences, kv_heads, slots, head_dim)."""
    _, _, heads, width = cache.shape
    return cache.index_select(0, blocks).view(sequences, -1, heads, width).transpose(1, 2)


def _length_mask(lengths: torch.Tensor, slots: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Additive (sequences, 1, 1, slots): a sequence's last token sees its own keys, within the window."""
    position = torch.arange(slots, device=like.device)
    hidden = position >= lengths[:, None]
    if window is not None:
        hidden |= position < lengths[:, None] - window
    return _additive(hidden, like)[:, None, None, :]


def _staircase(reach: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Additive (TILE, reach + TILE): row r sees relative keys r - window + 1 to r; column `reach` is key 0."""
    row = torch.arange(TILE, device=like.device)[:, None]
    relative = torch.arange(-reach, TILE, device=like.device)
    hidden = relative > row
    if window is not None:
        hidden |= relative <= row - window
    return _additive(hidden, like)


def _additive(hidden: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, MASKED)


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """A whole prefix at once: its keys are this step's own, and SDPA knows the mask."""
    rows, keys, values = _by_key_head(query, key, value)
    output = scaled_dot_product_attention(rows, keys, values, is_causal=True, scale=scaling)
    return output.flatten(0, 1).transpose(0, 1)


def _grouped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    rows, keys, values = _by_key_head(query, key, value)
    output = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
    return output.flatten(0, 1).transpose(0, 1)


def _by_key_head(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Key heads as the batch and the heads that share one as its heads; keys are viewed, not repeated.

    Returns:
        (kv_heads, heads per key head, tokens, head_dim) each.
    """
    key_heads = key.shape[1]
    shared = query.shape[1] // key_heads
    rows = query.reshape(query.shape[0], key_heads, shared, -1).permute(1, 2, 0, 3)
    keys = key.transpose(0, 1)[:, None].expand(-1, shared, -1, -1)
    values = value.transpose(0, 1)[:, None].expand(-1, shared, -1, -1)
    return rows, keys, values
