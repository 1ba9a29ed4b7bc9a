"""Triton kernels of paged attention: cache write, decode split over keys, chunks.

Import this module only where the package `triton` is installed; the wheels of
torch for CUDA bring it along. Knows strides, block tables and the running
softmax. Does not know steps, layers or who chooses the grid; `triton_paged`
launches. What differs from step to step is not specialised on, so that no
request waits for a compiler. No kernel reads a slot that its sequence has not written, so blocks
need not be cleared.

Names in capitals are compile-time constants: GROUP heads share a key head; ROWS
is the height of a score tile, at least 16 as the matrix units want it; TILE is
its width in keys; WIDTH is HEAD_DIM rounded up to a power of two. A WINDOW of 0
means that all keys are seen.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
NEVER = tl.constexpr(float("-inf"))


@triton.jit(do_not_specialize_on_alignment=["slots"])
def write_kernel(
    key,
    value,
    keys,
    values,
    slots,
    key_strides_0,
    key_strides_1,
    value_strides_0,
    value_strides_1,
    slot_stride,
    head_stride,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SIZE: tl.constexpr,
):
    """One program per token: its key and value of every head into its slot."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    index = tl.arange(0, SIZE)
    head, column = index // HEAD_DIM, index % HEAD_DIM
    there = index < HEADS * HEAD_DIM
    target = slot * slot_stride + head * head_stride + column
    new_key = tl.load(key + token * key_strides_0 + head * key_strides_1 + column, mask=there)
    tl.store(keys + target, new_key, mask=there)
    new_value = tl.load(value + token * value_strides_0 + head * value_strides_1 + column, mask=there)
    tl.store(values + target, new_value, mask=there)


@triton.jit
def slot_offsets(table, table_stride, positions, seen, block_stride, slot_stride, BLOCK_SIZE: tl.constexpr):
    """Offsets, in elements, of the slots of int32 (TILE,) positions of one sequence."""
    blocks = tl.load(table + (positions // BLOCK_SIZE) * table_stride, mask=seen, other=0).to(tl.int64)
    return blocks * block_stride + (positions % BLOCK_SIZE) * slot_stride


@triton.jit
def fold(total, greatest, weight, query, key, value, seen, scale, MASKED: tl.constexpr):
    """Takes one tile of keys into the running softmax.

    total (ROWS, WIDTH), greatest and weight (ROWS,) are float32; key is
    (WIDTH, TILE), value (TILE, WIDTH), seen (ROWS, TILE). `scale` holds the
    factor of base 2.
    """
    scores = tl.dot(query, key, input_precision="ieee") * scale
    if MASKED:
        scores = tl.where(seen, scores, NEVER)
    higher = tl.maximum(greatest, tl.max(scores, 1))
    # A row that has seen no key yet has no greatest score to subtract.
    base = tl.where(higher == NEVER, 0.0, higher)
    kept = tl.exp2(greatest - base)
    shares = tl.exp2(scores - base[:, None])
    total = total * kept[:, None] + tl.dot(shares.to(value.dtype), value, input_precision="ieee")
    return total, higher, weight * kept + tl.sum(shares, 1)


@triton.jit(
    do_not_specialize_on_alignment=["tables", "lengths"],
    do_not_specialize=["table_row_stride", "table_stride"],
)
def decode_kernel(
    query,
    keys,
    values,
    tables,
    lengths,
    output,
    partial,
    marks,
    scale,
    query_stride,
    query_head_stride,
    table_row_stride,
    table_stride,
    block_stride,
    slot_stride,
    head_stride,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One program per sequence, key head and split of the keys; the heads of a group are its rows.

    With one split the output is final; else `partial` and `marks` go to
    `combine_kernel`.
    """
    sequence, key_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    own = (row < GROUP)[:, None] & (column < HEAD_DIM)[None, :]
    head = key_head * GROUP + row
    place = sequence.to(tl.int64) * query_stride + head[:, None] * query_head_stride + column[None, :]
    queries = tl.load(query + place, mask=own, other=0.0)
    length = tl.load(lengths + sequence)
    begin, end = split_range(length, split, WINDOW, TILE, SPLITS)
    table = tables + sequence.to(tl.int64) * table_row_stride
    total, greatest, weight = decode_loop(
        queries, keys + key_head * head_stride, values + key_head * head_stride, table, begin, end, scale,
        table_stride, block_stride, slot_stride, ROWS, HEAD_DIM, WIDTH, BLOCK_SIZE, TILE,
    )  # fmt: skip
    heads = tl.num_programs(1) * GROUP
    target = sequence.to(tl.int64) * heads + head
    store_decoded(
        output, partial, marks, total, greatest, weight, target, split, row < GROUP, column, own,
        HEAD_DIM, SPLITS,
    )  # fmt: skip


@triton.jit
def split_range(length, split, WINDOW: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr):
    """The keys of one split, first and last (exclusive): whole tiles, alike for all splits."""
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    each = tl.cdiv(tl.cdiv(length - first, SPLITS), TILE) * TILE
    begin = first + split * each
    return begin, tl.minimum(begin + each, length)


@triton.jit
def decode_loop(
    queries,
    keys,
    values,
    table,
    begin,
    end,
    scale,
    table_stride,
    block_stride,
    slot_stride,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """The running softmax of the rows over keys `begin` to `end`."""
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    greatest = tl.full([ROWS], NEVER, dtype=tl.float32)
    weight = tl.zeros([ROWS], dtype=tl.float32)
    column, lane = tl.arange(0, WIDTH), tl.arange(0, TILE)
    for first in tl.range(begin, end, TILE):
        positions = first + lane
        seen = positions < end
        slots = slot_offsets(table, table_stride, positions, seen, block_stride, slot_stride, BLOCK_SIZE)
        there = seen[:, None] & (column < HEAD_DIM)[None, :]
        key = tl.load(keys + slots[:, None] + column[None, :], mask=there, other=0.0)
        value = tl.load(values + slots[:, None] + column[None, :], mask=there, other=0.0)
        total, greatest, weight = fold(
            total, greatest, weight, queries, tl.trans(key), value, seen[None, :], scale, True
        )
    return total, greatest, weight


@triton.jit
def store_decoded(
    output,
    partial,
    marks,
    total,
    greatest,
    weight,
    target,
    split,
    row_mask,
    column,
    own,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The answer itself where one program saw all keys, else its part: weighted sum, greatest, weight."""
    if SPLITS == 1:
        answer = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
        place = target[:, None] * HEAD_DIM + column[None, :]
        tl.store(output + place, answer.to(output.dtype.element_ty), mask=own)
    else:
        part = target * SPLITS + split
        tl.store(partial + part[:, None] * HEAD_DIM + column[None, :], total, mask=own)
        tl.store(marks + part * 2, greatest, mask=row_mask)
        tl.store(marks + part * 2 + 1, weight, mask=row_mask)


@triton.jit
def combine_kernel(
    output,
    partial,
    marks,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One program per sequence and head: the parts of all splits, weighed against each other."""
    target = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    part = target * SPLITS + split
    greatest = tl.load(marks + part * 2)
    weight = tl.load(marks + part * 2 + 1)
    highest = tl.max(greatest, 0)
    factor = tl.exp2(greatest - tl.where(highest == NEVER, 0.0, highest))
    there = (weight > 0.0)[:, None] & (column < HEAD_DIM)[None, :]
    totals = tl.load(partial + part[:, None] * HEAD_DIM + column[None, :], mask=there, other=0.0)
    weight = tl.sum(weight * factor, 0)
    answer = tl.sum(totals * factor[:, None], 0) / tl.where(weight == 0.0, 1.0, weight)
    tl.store(output + target * HEAD_DIM + column, answer.to(output.dtype.element_ty), mask=column < HEAD_DIM)


@triton.jit(
    do_not_specialize_on_alignment=["tables", "query_starts", "lengths"],
    do_not_specialize=["table_row_stride", "table_stride"],
)
def chunk_kernel(
    query,
    keys,
    values,
    tables,
    query_starts,
    lengths,
    output,
    scale,
    query_stride,
    query_head_stride,
    output_stride,
    table_row_stride,
    table_stride,
    block_stride,
    slot_stride,
    head_stride,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program per tile of a chunk's rows, head and sequence; causal, the chunk's end at the keys' end."""
    # The last tile of a chunk sees the most keys: it begins first.
    tile, head, sequence = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(query_starts + sequence).to(tl.int64)
    count = (tl.load(query_starts + sequence + 1) - begin).to(tl.int32)
    if tile * ROWS < count:
        length = tl.load(lengths + sequence)
        row, column = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
        own = (row < count)[:, None] & (column < HEAD_DIM)[None, :]
        place = (begin + row)[:, None] * query_stride + head * query_head_stride + column[None, :]
        queries = tl.load(query + place, mask=own, other=0.0)
        offset = (head // GROUP) * head_stride
        answer = chunk_rows(
            queries, keys + offset, values + offset, tables + sequence.to(tl.int64) * table_row_stride,
            length - count + tile * ROWS, length, scale, table_stride, block_stride, slot_stride,
            WINDOW, ROWS, HEAD_DIM, WIDTH, BLOCK_SIZE, TILE,
        )  # fmt: skip
        target = (begin + row)[:, None] * output_stride + head * HEAD_DIM + column[None, :]
        tl.store(output + target, answer.to(output.dtype.element_ty), mask=own)


@triton.jit
def chunk_rows(
    queries,
    keys,
    values,
    table,
    first_position,
    length,
    scale,
    table_stride,
    block_stride,
    slot_stride,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Attention of rows at positions `first_position` on: first keys that all of them see, then the rest."""
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    greatest = tl.full([ROWS], NEVER, dtype=tl.float32)
    weight = tl.zeros([ROWS], dtype=tl.float32)
    end = tl.minimum(first_position + ROWS, length)
    lowest = 0
    if WINDOW > 0:
        lowest = tl.maximum(first_position - WINDOW + 1, 0)
        bound = lowest
    else:
        bound = ((first_position + 1) // TILE) * TILE
        total, greatest, weight = chunk_loop(
            total, greatest, weight, queries, keys, values, table, 0, bound, first_position, length, scale,
            table_stride, block_stride, slot_stride, WINDOW, ROWS, HEAD_DIM, WIDTH, BLOCK_SIZE, TILE, False,
        )  # fmt: skip
    total, greatest, weight = chunk_loop(
        total, greatest, weight, queries, keys, values, table, bound, end, first_position, length, scale,
        table_stride, block_stride, slot_stride, WINDOW, ROWS, HEAD_DIM, WIDTH, BLOCK_SIZE, TILE, True,
    )  # fmt: skip
    return total / tl.where(weight == 0.0, 1.0, weight)[:, None]


@triton.jit
def chunk_loop(
    total,
    greatest,
    weight,
    queries,
    keys,
    values,
    table,
    begin,
    end,
    first_position,
    length,
    scale,
    table_stride,
    block_stride,
    slot_stride,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The running softmax over keys `begin` to `end`; without a mask every row sees every key."""
    column, lane = tl.arange(0, WIDTH), tl.arange(0, TILE)
    row_positions = first_position + tl.arange(0, ROWS)
    for first in tl.range(begin, end, TILE):
        positions = first + lane
        inside = positions < length
        slots = slot_offsets(table, table_stride, positions, inside, block_stride, slot_stride, BLOCK_SIZE)
        there = inside[:, None] & (column < HEAD_DIM)[None, :]
        key = tl.load(keys + slots[:, None] + column[None, :], mask=there, other=0.0)
        value = tl.load(values + slots[:, None] + column[None, :], mask=there, other=0.0)
        seen = (positions[None, :] <= row_positions[:, None]) & inside[None, :]
        if WINDOW > 0:
            seen = seen & (positions[None, :] > row_positions[:, None] - WINDOW)
        total, greatest, weight = fold(
            total, greatest, weight, queries, tl.trans(key), value, seen, scale, MASKED
        )
    return total, greatest, weight
