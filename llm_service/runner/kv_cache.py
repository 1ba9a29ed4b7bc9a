"""The paged KV pool: one tensor that holds every block of every layer.

Knows how a block lies in memory and how to write tokens into slots. Does not
know which sequence owns a block: the engine's block manager does.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress
from math import prod

import torch

from shared.families.base import KvLayout


def block_byte_count(layout: KvLayout, block_size: int, dtype: torch.dtype) -> int:
    """Bytes that one block takes over all layers, keys and values together."""
    elements = 2 * layout.layer_count * block_size * layout.kv_head_count * layout.head_dim
    return elements * dtype.itemsize


Writer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Puts keys and values into slots: takes both pools of a layer, the slots, the keys and the values."""


def copy_into_slots(
    keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Writes with torch's copy by index, on any device."""
    keys.index_copy_(0, slots, key)
    values.index_copy_(0, slots, value)


class KvCache:
    """The pool of blocks of one language model.

    Attributes:
        keys: per layer a view (blocks, block_size, kv_heads, head_dim).
        values: likewise.
        block_count: blocks in the pool.
        block_size: slots in a block.
        byte_count: bytes of the whole pool.
        writer: how `write` writes; a backend may have a faster way.
        scratch_block: a block behind the pool that no sequence ever owns, for
            rows that only fill a batch up; None where none was asked for.
    """

    def __init__(
        self,
        layout: KvLayout,
        block_count: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        with_scratch: bool = False,
    ) -> None:
        assert block_count > 0, "a pool without blocks was asked for"
        blocks = block_count + with_scratch
        shape = (layout.layer_count, 2, blocks, block_size, layout.kv_head_count, layout.head_dim)
        self._pool = take_memory(shape, dtype, device)
        self.block_count = block_count
        self.scratch_block = block_count if with_scratch else None
        self.writer: Writer = copy_into_slots
        self.block_size = block_size
        self.byte_count = self._pool.numel() * dtype.itemsize
        self.keys = [self._pool[layer, 0] for layer in range(layout.layer_count)]
        self.values = [self._pool[layer, 1] for layer in range(layout.layer_count)]
        self._key_slots = [keys.flatten(0, 1) for keys in self.keys]
        self._value_slots = [values.flatten(0, 1) for values in self.values]

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Puts (tokens, kv_heads, head_dim) keys and values into the int64 (tokens,) slots of a layer."""
        self.writer(self._key_slots[layer], self._value_slots[layer], slots, key, value)

    def clear(self, blocks: torch.Tensor) -> None:
        """Zeroes int64 (n,) blocks on every layer.

        A batched attention call multiplies masked slots by zero weight. What a
        former owner left there must therefore be finite: one NaN would spread
        to the new owner.
        """
        self._pool.index_fill_(2, blocks, 0)


def take_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros. On the CPU the system gives each page when it is first written, not before.

    Large pages, where the system has them: a decoding step reads the keys and values of all its
    sequences from beginning to end, and processors fetch ahead within a page.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
