"""Triton kernels between a decoder's matrix products: norms, rotation with the cache write, gating.

Import this module only where the package `triton` is installed. Each replaces a
handful of small launches and their trips through memory by one. Knows rows and
strides. Does not know layers. Rounds where the modeling code of transformers
rounds, so that answers stay as near to it as they can.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

GATE_COLUMNS = 1024


@triton.jit
def norm_kernel(
    rows,
    residual,
    weight,
    output,
    epsilon,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    ADDS: tl.constexpr,
):
    """One program per row: the residual grows by the row, and its root-mean-square norm goes out."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    there = column < WIDTH
    place = row * WIDTH + column
    values = tl.load(rows + place, mask=there, other=0.0)
    if ADDS:
        values = (values.to(tl.float32) + tl.load(residual + place, mask=there, other=0.0)).to(values.dtype)
    tl.store(residual + place, values, mask=there)
    exact = values.to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(exact * exact, 0) / WIDTH + epsilon)
    scaled = (exact * factor).to(values.dtype)
    scales = tl.load(weight + column, mask=there, other=0.0)
    tl.store(output + place, (scaled.to(tl.float32) * scales).to(values.dtype), mask=there)


@triton.jit
def norm_head(first, second, scales, there, epsilon, HEAD_DIM: tl.constexpr):
    """Both halves of a head after its root-mean-square norm; `scales` points at the first half's weights."""
    exact_first, exact_second = first.to(tl.float32), second.to(tl.float32)
    squares = tl.sum(exact_first * exact_first, 0) + tl.sum(exact_second * exact_second, 0)
    factor = 1.0 / tl.sqrt(squares / HEAD_DIM + epsilon)
    scaled_first = (exact_first * factor).to(first.dtype).to(tl.float32)
    scaled_second = (exact_second * factor).to(second.dtype).to(tl.float32)
    first = (scaled_first * tl.load(scales, mask=there, other=0.0)).to(first.dtype)
    second = (scaled_second * tl.load(scales + HEAD_DIM // 2, mask=there, other=0.0)).to(second.dtype)
    return first, second


@triton.jit
def rotate_kernel(
    states,
    cosines,
    sines,
    slots,
    query,
    keys,
    values,
    norms,
    epsilon,
    slot_stride,
    head_stride,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    NORMS: tl.constexpr,
):
    """One program per token and head: queries turned, keys turned into their slots, values into theirs.

    Where there are norms, queries and keys go through theirs before they turn.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half = HEAD_DIM // 2
    column = tl.arange(0, HALF)
    there = column < half
    source = states + (token * (HEADS + 2 * KEY_HEADS) + head) * HEAD_DIM + column
    first = tl.load(source, mask=there, other=0.0)
    second = tl.load(source + half, mask=there, other=0.0)
    slot = tl.load(slots + token).to(tl.int64) * slot_stride
    if head < HEADS + KEY_HEADS:
        if NORMS:
            scales = norms + (head >= HEADS).to(tl.int32) * HEAD_DIM + column
            first, second = norm_head(first, second, scales, there, epsilon, HEAD_DIM)
        cosine = tl.load(cosines + token * half + column, mask=there).to(tl.float32)
        sine = tl.load(sines + token * half + column, mask=there).to(tl.float32)
        turned_first = (first.to(tl.float32) * cosine - second.to(tl.float32) * sine).to(first.dtype)
        turned_second = (second.to(tl.float32) * cosine + first.to(tl.float32) * sine).to(first.dtype)
        if head < HEADS:
            target = query + (token * HEADS + head) * HEAD_DIM + column
            tl.store(target, turned_first, mask=there)
            tl.store(target + half, turned_second, mask=there)
        else:
            key_target = keys + slot + (head - HEADS) * head_stride + column
            tl.store(key_target, turned_first, mask=there)
            tl.store(key_target + half, turned_second, mask=there)
    else:
        value_target = values + slot + (head - HEADS - KEY_HEADS) * head_stride + column
        tl.store(value_target, first, mask=there)
        tl.store(value_target + half, second, mask=there)


@triton.jit
def gate_kernel(gated, output, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """One program per row and run of columns: the SiLU of the first half times the second."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < WIDTH
    gate = tl.load(gated + row * 2 * WIDTH + column, mask=there, other=0.0)
    rise = tl.load(gated + row * 2 * WIDTH + WIDTH + column, mask=there, other=0.0)
    exact = gate.to(tl.float32)
    opened = (exact / (1.0 + tl.exp(-exact))).to(gate.dtype)
    tl.store(output + row * WIDTH + column, (opened.to(tl.float32) * rise).to(gate.dtype), mask=there)


def add_and_norm(
    rows: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float, *, adds: bool
) -> torch.Tensor:
    """The norm of `residual` after `rows` (tokens, hidden) were added to it, or have replaced it."""
    output = torch.empty_like(rows)
    width = rows.shape[1]
    size = triton.next_power_of_2(width)
    norm_kernel[(len(rows),)](
        rows, residual, weight, output, epsilon, WIDTH=width, SIZE=size, ADDS=adds,
        num_warps=8 if size > 2048 else 4,
    )  # fmt: skip
    return output


def rotate_and_write(
    states: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    heads: int,
    norms: torch.Tensor | None = None,
    epsilon: float = 0.0,
) -> torch.Tensor:
    """Queries (tokens, heads, head_dim), turned; keys and values are in the cache.

    Args:
        states: (tokens, (heads + 2 kv_heads) x head_dim), dense: queries, keys, values.
        cosines: (tokens, head_dim / 2); sines likewise.
        slots: int64 (tokens,).
        keys: a layer's blocks, (blocks, block_size, kv_heads, head_dim); values likewise.
        norms: (2, head_dim), dense: weights of the root-mean-square norms of queries and of keys.
        epsilon: of these norms.
    """
    tokens, key_heads, width = len(states), keys.shape[2], keys.shape[3]
    query = torch.empty((tokens, heads, width), dtype=states.dtype, device=states.device)
    rotate_kernel[(tokens, heads + 2 * key_heads)](
        states, cosines, sines, slots, query, keys, values, states if norms is None else norms, epsilon,
        keys.stride(1), keys.stride(2),
        HEADS=heads, KEY_HEADS=key_heads, HEAD_DIM=width, HALF=triton.next_power_of_2(width // 2),
        NORMS=norms is not None, num_warps=1,
    )  # fmt: skip
    return query


def gate(gated: torch.Tensor) -> torch.Tensor:
    """(tokens, 2 inner), gates before values, to (tokens, inner)."""
    tokens, width = gated.shape[0], gated.shape[1] // 2
    output = torch.empty((tokens, width), dtype=gated.dtype, device=gated.device)
    grid = (tokens, triton.cdiv(width, GATE_COLUMNS))
    gate_kernel[grid](gated, output, WIDTH=width, COLUMNS=GATE_COLUMNS, num_warps=4)
    return output
