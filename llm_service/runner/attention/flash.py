"""The fast backend on CUDA: `flash_attn` reads the paged cache through block tables.

Import this module only where the package `flash_attn` is installed. Knows that
package's calling convention and its limits; does not know how blocks are
owned or written.
"""

from __future__ import annotations

import torch
from flash_attn import flash_attn_varlen_func

from llm_service.runner.attention.context import StepShape
from llm_service.runner.kv_cache import KvCache

BLOCK_MULTIPLE = 256
"""The kernel reads blocks of a multiple of this many slots."""

DATA_TYPES = (torch.float16, torch.bfloat16)


class FlashBackend:
    """One kernel call per layer for decoding sequences and chunks together."""

    name = "flash_attn"

    def plan(self, cache: KvCache, shape: StepShape) -> FlashStep:
        return FlashStep(cache, shape)


class FlashStep:
    """The plan of one step: running sums of lengths, as the kernel takes them."""

    def __init__(self, cache: KvCache, shape: StepShape) -> None:
        self._cache = cache
        self._query_starts = shape.query_starts
        self._key_starts = torch.nn.functional.pad(shape.lengths.cumsum(0, dtype=torch.int32), (1, 0))
        self._block_tables = shape.block_tables.to(torch.int32).contiguous()
        self._longest_query = max(shape.counts)
        self._longest_key = max(map(int.__add__, shape.starts, shape.counts))

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        output: torch.Tensor = flash_attn_varlen_func(
            query,
            self._cache.keys[layer],
            self._cache.values[layer],
            cu_seqlens_q=self._query_starts,
            cu_seqlens_k=self._key_starts,
            max_seqlen_q=self._longest_query,
            max_seqlen_k=self._longest_key,
            softmax_scale=scaling,
            causal=True,
            window_size=(-1, -1) if window is None else (window - 1, 0),
            block_table=self._block_tables,
        )
        return output
