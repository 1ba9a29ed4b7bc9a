"""A decoder on CUDA with few launches: joined projections, and one kernel for what lies between them.

Import this module only where the package `triton` is installed. Takes the
weights out of a loaded Hugging Face text model of the common structure. Knows
the order of a layer. Does not know paged attention: the step's plan attends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from llm_service.runner.attention.context import AttentionContext
from llm_service.runner.fused_kernels import add_and_norm, gate, rotate_and_write
from llm_service.runner.layer_window import layer_window
from llm_service.runner.rotary_axes import rotary_axes
from shared.families.base import StateShape
from shared.families.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix (outputs, inputs) and its bias, if it has one."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """(tokens, inputs) to (tokens, outputs)."""
        return functional.linear(rows, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """One layer's weights; `states` makes queries, keys and values, `gated` gates and values.

    `head_norms` (2, head_dim) are the weights of the norms of each head of queries and of keys, if any.
    """

    input_norm: torch.Tensor
    states: Product
    head_norms: torch.Tensor | None
    output: Product
    feed_norm: torch.Tensor
    gated: Product
    down: Product
    scale: float
    window: int | None


class FusedDecoder:
    """See `LanguageModel`. The decoder that it is made of cannot compute afterwards.

    Attributes:
        axes: int64 (head_dim / 2,): which axis of the positions each frequency takes.
        extra_widths: rows that are added behind the first layers, in their order.
        state_shapes: none; see `LanguageModel`.
    """

    state_shapes: Mapping[str, StateShape] = MappingProxyType({})

    def __init__(self, decoder: Decoder) -> None:
        model: Any = decoder.module.model
        self.hidden_size = decoder.hidden_size
        self.vocabulary_size = decoder.vocabulary_size
        self.kv_layout = decoder.kv_layout
        self._dtype = decoder.dtype
        self._embedding: torch.Tensor = model.embed_tokens.weight
        self._head: torch.Tensor = decoder.module.lm_head.weight
        self._norm: torch.Tensor = model.norm.weight
        self._epsilon = float(model.config.rms_norm_eps)
        self._heads = model.layers[0].self_attn.q_proj.weight.shape[0] // self.kv_layout.head_dim
        self._frequencies: torch.Tensor = model.rotary_emb.inv_freq.float()
        self._rotary_factor = float(model.rotary_emb.attention_scaling)
        self.axes = rotary_axes(decoder)
        self.extra_widths = decoder.extra_widths
        self._layers = [_take_layer(layer) for layer in model.layers]

    @torch.inference_mode()
    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 (tokens,) to (tokens, hidden)."""
        return functional.embedding(token_ids, self._embedding)

    @torch.inference_mode()
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        positions: torch.Tensor,
        *,
        extras: Mapping[str, torch.Tensor] | None = None,
        **attention: Any,
    ) -> torch.Tensor:
        """Runs all layers on (tokens, hidden) with positions (axes, tokens); see `LanguageModel`.

        Args:
            extras: a (tokens, hidden) for each of `extra_widths`; None where the step has no media rows.
        """
        context: AttentionContext = attention["attention_context"]
        # The reference, which computes such steps, may read keys where this decoder has none; see below.
        assert context.shape is None or not context.shape.mutual, "these kernels know causal attention alone"
        cosines, sines = self._rotation(positions)
        rows, residual = inputs_embeds, torch.empty_like(inputs_embeds)
        levels = [] if extras is None else [extras[name] for name in self.extra_widths]
        for index, layer in enumerate(self._layers):
            states = layer.states.of(self._grow(rows, residual, layer.input_norm, adds=index > 0))
            query = rotate_and_write(
                states, cosines, sines, context.slots,
                context.cache.keys[index], context.cache.values[index], self._heads,
                layer.head_norms, self._epsilon,
            )  # fmt: skip
            # The keys are read from the cache: backends that want them apart are not for this decoder.
            attended = context.attention.attend(index, query, query, query, layer.scale, layer.window)
            rows = layer.output.of(attended.flatten(1))
            gated = layer.gated.of(self._grow(rows, residual, layer.feed_norm))
            rows = layer.down.of(gate(gated))
            if index < len(levels):
                # What the layer gave is rounded before the level's rows are added.
                residual += rows
                rows = levels[index]
        return self._grow(rows, residual, self._norm)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) to float32 (tokens, vocabulary)."""
        return functional.linear(hidden, self._head).float()

    def _grow(
        self, rows: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *, adds: bool = True
    ) -> torch.Tensor:
        return add_and_norm(rows, residual, weight, self._epsilon, adds=adds)

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (tokens, head_dim / 2) of a step, rounded as the modeling code rounds them."""
        angles = positions.index_select(0, self.axes).t().float() * self._frequencies
        cosines, sines = angles.cos() * self._rotary_factor, angles.sin() * self._rotary_factor
        return cosines.to(self._dtype).contiguous(), sines.to(self._dtype).contiguous()


def _take_layer(layer: Any) -> FusedLayer:
    """Joins a layer's matrices; each original is let go at once."""
    attention, feed = layer.self_attn, layer.mlp
    return FusedLayer(
        input_norm=layer.input_layernorm.weight,
        states=_join(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms=_head_norms(attention),
        output=_join(attention.o_proj),
        feed_norm=layer.post_attention_layernorm.weight,
        gated=_join(feed.gate_proj, feed.up_proj),
        down=_join(feed.down_proj),
        scale=float(attention.scaling),
        window=layer_window(attention),
    )


def _head_norms(attention: Any) -> torch.Tensor | None:
    if not hasattr(attention, "q_norm"):
        return None
    return torch.stack([attention.q_norm.weight.data, attention.k_norm.weight.data])


def _join(*parts: nn.Linear) -> Product:
    if len(parts) == 1:
        return Product(parts[0].weight.data, None if parts[0].bias is None else parts[0].bias.data)
    bias = None
    if any(part.bias is not None for part in parts):
        bias = torch.cat(
            [
                part.weight.new_zeros(part.out_features) if part.bias is None else part.bias.data
                for part in parts
            ]
        )
    weight = torch.cat([part.weight.data for part in parts])
    for part in parts:
        part.weight.data = part.weight.data.new_empty(0)
    return Product(weight, bias)
