"""A paged cache with random keys for one step, on the CPU or a GPU, and what the reference makes of it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from llm_service.runner.attention.context import AttentionBackend, StepShape
from llm_service.runner.attention.sdpa import SdpaBackend
from llm_service.runner.kv_cache import KvCache
from shared.families.base import KvLayout

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
"""Where Triton's kernels run in this process: its interpreter works on the CPU's memory."""


@contextmanager
def whole_bfloat16() -> Iterator[None]:
    """Mends the interpreter, which multiplies matrices of bfloat16 as if their bits were integers."""
    if not INTERPRETED:
        yield
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return original(self, widened(a), widened(b), *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
        yield


@dataclass(frozen=True)
class Sizes:
    """Of a layer: heads, key heads, elements of a head, slots of a block, element type."""

    heads: int = 4
    key_heads: int = 2
    width: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float32


class PagedScene:
    """Sequences in random blocks; whatever no sequence owns or has not written is not a number."""

    def __init__(self, parts: list[tuple[int, int]], sizes: Sizes) -> None:
        """Takes (start, count) per sequence: those of one token first, the longest at the front."""
        generator = torch.Generator().manual_seed(len(parts))
        self.sizes = sizes
        lengths = [start + count for start, count in parts]
        blocks = [-(-length // sizes.block_size) for length in lengths]
        pool = sum(blocks) + 2
        free = random.Random(3).sample(range(pool), pool)
        tables = [[free.pop() for _ in range(count)] for count in blocks]
        layout = KvLayout(1, sizes.key_heads, sizes.width)
        self.cache = KvCache(layout, pool, sizes.block_size, sizes.dtype, DEVICE)
        for pools in (self.cache.keys, self.cache.values):
            pools[0].fill_(float("nan"))
        slots = [self._slots(table, length) for table, length in zip(tables, lengths, strict=True)]
        for places in slots:
            keys, values = (self._random(generator, len(places), sizes.key_heads) for _ in range(2))
            self.cache.write(0, places, keys, values)
        total = sum(count for _, count in parts)
        # As the modeling code hands it over: heads outermost in memory.
        self.query = self._random(generator, sizes.heads, total).transpose(0, 1)
        widest = max(blocks)
        self.shape = StepShape(
            starts=[start for start, _ in parts],
            counts=[count for _, count in parts],
            decode_count=sum(count == 1 for _, count in parts),
            slots=torch.cat([places[start:] for places, (start, _) in zip(slots, parts, strict=True)]),
            # A tail that points nowhere: kernels may read it, and must not follow it.
            block_tables=torch.tensor(
                [table + [1 << 30] * (widest - len(table)) for table in tables], device=DEVICE
            ),
            query_starts=torch.tensor([0] + [count for _, count in parts], device=DEVICE).cumsum(0).int(),
            lengths=torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        )

    def attend(
        self, backend: AttentionBackend, scaling: float | None = None, window: int | None = None
    ) -> torch.Tensor:
        """What a backend says."""
        key, value = (
            pool[0].flatten(0, 1)[self.shape.slots] for pool in (self.cache.keys, self.cache.values)
        )
        step = backend.plan(self.cache, self.shape)
        with whole_bfloat16():
            return step.attend(0, self.query, key, value, scaling, window)

    def expected(self, scaling: float | None = None, window: int | None = None) -> torch.Tensor:
        """What the reference backend says on the same numbers in float64, on the CPU."""
        sizes, pool = self.sizes, self.cache
        layout = KvLayout(1, sizes.key_heads, sizes.width)
        exact = KvCache(layout, pool.block_count, sizes.block_size, torch.float64, torch.device("cpu"))
        exact.keys[0].copy_(pool.keys[0].nan_to_num())
        exact.values[0].copy_(pool.values[0].nan_to_num())
        tables = self.shape.block_tables.cpu()
        shape = replace(
            self.shape,
            slots=self.shape.slots.cpu(),
            block_tables=tables.where(tables < pool.block_count, tables[:, :1]),
            query_starts=self.shape.query_starts.cpu(),
            lengths=self.shape.lengths.cpu(),
        )
        key, value = (side[0].flatten(0, 1)[shape.slots] for side in (exact.keys, exact.values))
        query = self.query.cpu().double()
        return SdpaBackend().plan(exact, shape).attend(0, query, key, value, scaling, window)

    def _slots(self, table: list[int], length: int) -> torch.Tensor:
        size = self.sizes.block_size
        return torch.tensor([table[i // size] * size + i % size for i in range(length)], device=DEVICE)

    def _random(self, generator: torch.Generator, first: int, second: int) -> torch.Tensor:
        return torch.randn(first, second, self.sizes.width, generator=generator).to(DEVICE, self.sizes.dtype)
