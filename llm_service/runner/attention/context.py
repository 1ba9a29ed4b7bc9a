"""What every attention layer of a step needs to know, and what a backend must do.

The model runner makes one `AttentionContext` per step and hands it through the
modeling code as a forward keyword; the registered attention function finds it
there. Knows slots and lengths; does not know sequences, layers' weights or how
a backend computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from llm_service.runner.kv_cache import KvCache


@dataclass(frozen=True, slots=True)
class MutualSpan:
    """Tokens `first` to `end` (exclusive) of a sequence: each of them sees all of them.

    Attributes:
        sequence: which of the step's sequences.
    """

    sequence: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class StepShape:
    """Where a step's tokens lie: `decode_count` sequences of one token, then the chunks.

    Lists stand on the host, tensors on the device. Rows of every field are in
    the order of the flattened batch.

    Attributes:
        starts: per sequence, the index of its first token of this step.
        counts: per sequence, its tokens of this step.
        decode_count: sequences at the front of the batch whose count is 1,
            sorted by falling length.
        slots: int64 (tokens,), where each token's key and value go.
        block_tables: int64 (sequences, widest table); a row's tail repeats its
            first block, so that it reads nothing of others.
        query_starts: int32 (sequences + 1,), running sum of `counts`.
        lengths: int32 (sequences,), keys that the last token of each sees.
        mutual: spans of the step's tokens that see each other in both directions,
            in order; each lies within its sequence's tokens of this step.
    """

    starts: list[int]
    counts: list[int]
    decode_count: int
    slots: torch.Tensor
    block_tables: torch.Tensor
    query_starts: torch.Tensor
    lengths: torch.Tensor
    mutual: tuple[MutualSpan, ...] = ()


class StepAttention(Protocol):
    """A backend's plan for one step: made once, used by every layer."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Causal attention of the step's tokens over their own sequences, but for mutual spans.

        The layer's new keys and values stand in the cache already.

        Args:
            query: (tokens, heads, head_dim).
            key: this step's keys, (tokens, kv_heads, head_dim).
            value: likewise.
            scaling: factor on the scores; None for head_dim ** -0.5.
            window: keys that a token sees, itself included; None for all.

        Returns:
            (tokens, heads, head_dim) in the query's dtype.
        """
        ...


class AttentionBackend(Protocol):
    """One way of computing paged attention."""

    name: str

    def plan(self, cache: KvCache, shape: StepShape) -> StepAttention:
        """Prepares what all layers of a step share."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """One step's cache, slots and plan; and its shape, for models that attend by themselves."""

    cache: KvCache
    slots: torch.Tensor
    attention: StepAttention
    shape: StepShape | None = None
