"""The backend on CUDA that needs only what torch's own wheels bring: Triton.

Import this module only where the package `triton` is installed. Knows how large
a grid to launch and which strides the kernels take; the kernels are in
`triton_kernels`. Decoding rows and chunks are two launches, a third combines
the splits of long sequences. Nothing depends on values on the device, and the
grid of a step that only decodes depends on the batch size and the longest
length alone, so that such a step can be captured as a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from llm_service.runner.attention.context import StepShape
from llm_service.runner.attention.triton_kernels import (
    LOG2_E,
    chunk_kernel,
    combine_kernel,
    decode_kernel,
    write_kernel,
)
from llm_service.runner.kv_cache import KvCache

LEAST_ROWS = 16
"""Height of the smallest tile that the matrix units multiply."""

DECODE_TILE = 64
"""Keys that a decoding program reads at once."""

CHUNK_ROWS = 128
CHUNK_TILE = 64

WIDE_HEAD = 128
"""Heads wider than this get smaller tiles: the accumulators must stay in registers."""

MOST_SPLITS = 64

WAVES = 2
"""Programs that each multiprocessor should have when a few long sequences decode."""


class TritonBackend:
    """Paged attention with kernels of our own.

    Args:
        processors: multiprocessors of the device; None asks the device at the first step.
    """

    name = "triton"

    def __init__(self, processors: int | None = None) -> None:
        self._processors = processors

    def plan(self, cache: KvCache, shape: StepShape) -> TritonStep:
        if self._processors is None:
            self._processors = _processor_count(cache.keys[0].device)
        # One launch for keys and values of all heads, instead of two copies by index.
        cache.writer = write_slots
        return TritonStep(cache, shape, self._processors)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes of the score tiles for a head width and element type."""

    rows: int
    keys: int
    warps: int


class TritonStep:
    """The plan of one step: sizes of its grids."""

    def __init__(self, cache: KvCache, shape: StepShape, processors: int) -> None:
        self._cache = cache
        self._shape = shape
        # One type for recorded and other steps: a kernel is compiled once for both.
        self._tables = shape.block_tables.to(torch.int32)
        keys = cache.keys[0]
        decoding = shape.decode_count
        self._longest_chunk = max(shape.counts[decoding:], default=0)
        longest = max((start + 1 for start in shape.starts[:decoding]), default=0)
        self._splits = split_count(max(decoding, 1) * keys.shape[2], longest, processors)
        self._chunk_starts = shape.query_starts[decoding:]
        self._chunk_lengths = shape.lengths[decoding:]
        self._chunk_tables = self._tables[decoding:]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        assert query.stride(2) == 1, "the elements of a head lie side by side"
        scale = float(LOG2_E.value) * (query.shape[2] ** -0.5 if scaling is None else scaling)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if self._shape.decode_count:
            self._decode(layer, query, output, scale, window or 0)
        if self._longest_chunk:
            self._chunks(layer, query, output, scale, window or 0)
        return output

    def _decode(
        self, layer: int, query: torch.Tensor, output: torch.Tensor, scale: float, window: int
    ) -> None:
        """Rows of the decoding sequences, (sequences, heads, head_dim) at the front of `output`."""
        sequences, (heads, width) = self._shape.decode_count, query.shape[1:]
        keys, tables = self._cache.keys[layer], self._tables
        group = heads // keys.shape[2]
        partial, marks = _scratch(query, sequences, self._splits)
        decode_kernel[(sequences, keys.shape[2], self._splits)](
            query, keys, self._cache.values[layer], tables, self._shape.lengths, output, partial, marks,
            scale, query.stride(0), query.stride(1), tables.stride(0), tables.stride(1),
            keys.stride(0), keys.stride(1), keys.stride(2),
            WINDOW=window, GROUP=group, ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
            HEAD_DIM=width, WIDTH=_padded(width), BLOCK_SIZE=self._cache.block_size,
            TILE=DECODE_TILE if width <= WIDE_HEAD else DECODE_TILE // 2, SPLITS=self._splits,
            num_warps=4, num_stages=2,
        )  # fmt: skip
        if self._splits > 1:
            combine_kernel[(sequences * heads,)](
                output, partial, marks, HEAD_DIM=width, WIDTH=_padded(width), SPLITS=self._splits, num_warps=4
            )

    def _chunks(
        self, layer: int, query: torch.Tensor, output: torch.Tensor, scale: float, window: int
    ) -> None:
        """Rows of the chunks, behind those of the decoding sequences."""
        heads, width = query.shape[1:]
        keys, tables = self._cache.keys[layer], self._chunk_tables
        tiles = chunk_tiles(width, query.dtype)
        grid = (triton.cdiv(self._longest_chunk, tiles.rows), heads, len(self._chunk_lengths))
        chunk_kernel[grid](
            query, keys, self._cache.values[layer], tables, self._chunk_starts, self._chunk_lengths, output,
            scale, query.stride(0), query.stride(1), output.stride(0), tables.stride(0), tables.stride(1),
            keys.stride(0), keys.stride(1), keys.stride(2),
            WINDOW=window, GROUP=heads // keys.shape[2], ROWS=tiles.rows, HEAD_DIM=width,
            WIDTH=_padded(width), BLOCK_SIZE=self._cache.block_size, TILE=tiles.keys,
            num_warps=tiles.warps, num_stages=2,
        )  # fmt: skip


def write_slots(
    keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Puts (tokens, kv_heads, head_dim) keys and values into slots of one layer.

    Args:
        keys: (slots, kv_heads, head_dim), of the whole pool.
        values: likewise, with the same strides.
        slots: int64 (tokens,).
    """
    tokens, heads, width = key.shape
    assert key.stride(2) == value.stride(2) == 1, "the elements of a head lie side by side"
    write_kernel[(tokens,)](
        key, value, keys, values, slots, key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        keys.stride(0), keys.stride(1),
        HEADS=heads, HEAD_DIM=width, SIZE=triton.next_power_of_2(heads * width), num_warps=4,
    )  # fmt: skip


def split_count(programs: int, longest: int, processors: int) -> int:
    """Into how many parts the keys of a decoding sequence are cut: 1, 4, 16 or 64.

    Few values, so that all are compiled before requests come.

    Args:
        programs: sequences times key heads, which run beside each other anyway.
        longest: keys of the longest sequence.
        processors: multiprocessors to fill.
    """
    wanted = min(WAVES * processors // programs, triton.cdiv(longest, DECODE_TILE), MOST_SPLITS)
    return 4 ** ((wanted.bit_length() - 1) // 2) if wanted > 1 else 1


def chunk_tiles(width: int, dtype: torch.dtype) -> Tiles:
    """Tiles that fit into registers and shared memory."""
    if dtype == torch.float32 or width > WIDE_HEAD:
        return Tiles(rows=CHUNK_ROWS // 4, keys=CHUNK_TILE // 2, warps=4)
    return Tiles(rows=CHUNK_ROWS, keys=CHUNK_TILE, warps=4 if width <= WIDE_HEAD // 2 else 8)


def _scratch(query: torch.Tensor, sequences: int, splits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 memory of the parts: sums (sequences, heads, splits, head_dim), marks (..., splits, 2)."""
    heads, width = query.shape[1:]
    if splits == 1:
        nothing = torch.empty(1, dtype=torch.float32, device=query.device)
        return nothing, nothing
    size = (sequences, heads, splits)
    partial = torch.empty((*size, width), dtype=torch.float32, device=query.device)
    return partial, torch.empty((*size, 2), dtype=torch.float32, device=query.device)


def _padded(width: int) -> int:
    return max(LEAST_ROWS, int(triton.next_power_of_2(width)))


def _processor_count(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
