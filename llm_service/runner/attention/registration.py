"""Puts paged attention into Hugging Face modeling code under one name.

Knows the calling convention of `AttentionInterface`. Does not know how the
attention is computed: the step's context brings the backend's plan along.
"""

from __future__ import annotations

from typing import Any

import torch

from llm_service.runner.attention.context import AttentionContext

ATTENTION_NAME = "percept_paged"
"""Name to load a model with; no mask is built for a name that has no mask function."""

CONTEXT_KEYWORD = "attention_context"
"""Forward keyword that carries the step's `AttentionContext` to every layer."""


def register_attention() -> None:
    """Makes `ATTENTION_NAME` known to transformers. May be called again."""
    from transformers import AttentionInterface  # takes seconds, and only the engine process needs it

    AttentionInterface.register(ATTENTION_NAME, paged_attention)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    attention_context: AttentionContext,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over a flattened batch: (1, heads, tokens, head_dim) to (1, tokens, heads, head_dim)."""
    assert attention_mask is None, "the modeling code built a mask for paged attention"
    layer = module.layer_idx
    assert isinstance(layer, int), "an attention module without a layer index"
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    attention_context.cache.write(layer, attention_context.slots, key, value)
    output = attention_context.attention.attend(layer, query, key, value, scaling, sliding_window)
    return output.unsqueeze(0), None
