"""A Triton kernel for attention within segments: many pictures, or windows of one, in one launch.

Import this module only where the package `triton` is installed. Knows segments
of a flat batch; every row sees every key of its own segment. Does not know
towers; `tower_attention` puts it into them.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
LEAST_ROWS = 16
NARROW_ROWS = 64
"""For windows and thumbnails; few heights, so that few kernels are compiled."""

MOST_ROWS = 128
TILE = 64
WIDE_HEAD = 128
"""Heads wider than this, and float32, get smaller tiles: the accumulators must stay in registers."""


@triton.jit
def varlen_kernel(
    query,
    keys,
    values,
    starts,
    output,
    scale,
    row_stride,
    head_stride,
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    output_stride,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program per tile of a segment's rows, head and segment. `scale` holds the factor of base 2."""
    tile, head, segment = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(starts + segment).to(tl.int64)
    count = (tl.load(starts + segment + 1) - begin).to(tl.int32)
    if tile * ROWS < count:
        row, column = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
        own = (row < count)[:, None] & (column < HEAD_DIM)[None, :]
        place = (begin + row)[:, None] * row_stride + head * head_stride + column[None, :]
        queries = tl.load(query + place, mask=own, other=0.0)
        key_base = keys + begin * key_row_stride + head * key_head_stride
        value_base = values + begin * value_row_stride + head * value_head_stride
        answer = segment_rows(
            queries, key_base, value_base, count, scale, key_row_stride, value_row_stride,
            ROWS, HEAD_DIM, WIDTH, TILE,
        )  # fmt: skip
        target = (begin + row)[:, None] * output_stride + head * HEAD_DIM + column[None, :]
        tl.store(output + target, answer.to(output.dtype.element_ty), mask=own)


@triton.jit
def segment_rows(
    queries,
    keys,
    values,
    count,
    scale,
    key_row_stride,
    value_row_stride,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """The softmax of the rows over a segment's `count` keys, tile by tile: (ROWS, WIDTH) float32."""
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    greatest = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    weight = tl.zeros([ROWS], dtype=tl.float32)
    column, lane = tl.arange(0, WIDTH), tl.arange(0, TILE)
    for first in tl.range(0, count, TILE):
        position = first + lane
        inside = position < count
        there = inside[:, None] & (column < HEAD_DIM)[None, :]
        offset = position.to(tl.int64)[:, None]
        key = tl.load(keys + offset * key_row_stride + column[None, :], mask=there, other=0.0)
        value = tl.load(values + offset * value_row_stride + column[None, :], mask=there, other=0.0)
        scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        # Every tile holds a key, so the greatest score is finite.
        higher = tl.maximum(greatest, tl.max(scores, 1))
        kept = tl.exp2(greatest - higher)
        shares = tl.exp2(scores - higher[:, None])
        total = total * kept[:, None] + tl.dot(shares.to(value.dtype), value, input_precision="ieee")
        weight = weight * kept + tl.sum(shares, 1)
        greatest = higher
    return total / weight[:, None]


def attend_within_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scaling: float,
) -> torch.Tensor:
    """Attention in which every row sees the rows of its own segment.

    Args:
        query: (rows, heads, head_dim); key and value likewise.
        starts: int32 (segments + 1,), first row of each segment, then the end.
        longest: rows of the longest segment.

    Returns:
        (rows, heads, head_dim), dense.
    """
    rows, heads, width = query.shape
    assert query.stride(2) == key.stride(2) == value.stride(2) == 1, "a head's elements lie side by side"
    output = torch.empty((rows, heads, width), dtype=query.dtype, device=query.device)
    small = query.dtype == torch.float32 or width > WIDE_HEAD
    height = MOST_ROWS // 4 if small else NARROW_ROWS if longest <= NARROW_ROWS else MOST_ROWS
    varlen_kernel[(triton.cdiv(longest, height), heads, len(starts) - 1)](
        query, key, value, starts, output, scaling * LOG2_E,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        output.stride(0),
        ROWS=height, HEAD_DIM=width, WIDTH=max(LEAST_ROWS, triton.next_power_of_2(width)),
        TILE=TILE // 2 if small else TILE, num_warps=8 if height == MOST_ROWS else 4, num_stages=2,
    )  # fmt: skip
    return output
