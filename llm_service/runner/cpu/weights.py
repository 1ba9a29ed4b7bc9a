"""Takes a Hugging Face text model apart into packed weights, where its structure is the common one.

Knows that structure: pre-norm layers, rotary embedding, grouped heads that may have
norms of their own, a gated SiLU feed-forward. Does not compute. Each original is let
go as soon as it is packed, so that the weights are in memory once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llm_service.runner.layer_window import layer_window
from llm_service.runner.rotary_axes import rotary_axes
from shared.families.decoder import Decoder
from shared.kernels.library import Team
from shared.kernels.program import HeadNorms, Heads, PackedMatrix, pack_matrix

_CLASSES = frozenset(
    {
        "LlamaModel",
        "MistralModel",
        "Qwen2Model",
        "Qwen2VLTextModel",
        "Qwen2_5OmniThinkerTextModel",
        "Qwen2_5_VLTextModel",
        "Qwen3Model",
        "Qwen3VLTextModel",
    }
)
"""Models of this structure. Others share its names and mean something else by them (a norm of 1 + weight)."""

_LAYER_NAMES = frozenset(
    {"input_layernorm.weight", "post_attention_layernorm.weight"}
    | {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    | {f"self_attn.{name}_proj.{part}" for name in "qkvo" for part in ("weight", "bias")}
    | {f"mlp.{name}_proj.{part}" for name in ("gate", "up", "down") for part in ("weight", "bias")}
)
_STEADY_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary embedding whose frequencies do not depend on the prompt's length."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Biases and norms of heads are None where the model has none."""

    input_norm: torch.Tensor
    states: PackedMatrix
    states_bias: torch.Tensor | None
    head_norms: HeadNorms | None
    output: PackedMatrix
    output_bias: torch.Tensor | None
    feed_norm: torch.Tensor
    gated: PackedMatrix
    gated_bias: torch.Tensor | None
    down: PackedMatrix
    down_bias: torch.Tensor | None
    scale: float
    window: int | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A whole decoder.

    Attributes:
        embedding: row-major (vocabulary, hidden), or None where `head` serves both ways.
        head: the output layer.
        frequencies: float32 (width / 2,) of the rotary embedding.
        axes: int32 (width / 2,): which axis of the positions each frequency takes.
        rotary_factor: factor on cosines and sines.
    """

    layers: list[LayerWeights]
    norm: torch.Tensor
    epsilon: float
    embedding: torch.Tensor | None
    head: PackedMatrix
    heads: Heads
    hidden_size: int
    frequencies: torch.Tensor
    axes: torch.Tensor
    rotary_factor: float


def obstacle(decoder: Decoder) -> str | None:
    """Why a decoder cannot run on these kernels, or None where it can."""
    model: Any = decoder.module.model
    name, config = type(model).__name__, model.config
    if name not in _CLASSES:
        return f"{name} is not one of the known structures"
    if config.hidden_act != "silu":
        return f"the activation is {config.hidden_act}"
    if model.rotary_emb.rope_type not in _STEADY_ROTATIONS:
        return f"the rotary embedding is of type {model.rotary_emb.rope_type}"
    unknown = {name for layer in model.layers for name, _ in layer.named_parameters()} - _LAYER_NAMES
    if unknown:
        return f"layers hold {', '.join(sorted(unknown))}"
    layout = decoder.kv_layout
    odd = [size for size in (config.hidden_size, config.intermediate_size, layout.head_dim) if size % 2]
    return f"a width is odd: {odd[0]}" if odd else None


def take_weights(decoder: Decoder, team: Team) -> DecoderWeights:
    """Packs a decoder for which there is no obstacle. It cannot compute afterwards."""
    model: Any = decoder.module.model
    layout, config = decoder.kv_layout, model.config
    head_count = model.layers[0].self_attn.q_proj.weight.shape[0] // layout.head_dim
    frequencies = model.rotary_emb.inv_freq.float().contiguous()
    layers = list(_layers(model, team))
    tied = decoder.module.lm_head.weight is model.embed_tokens.weight
    head = pack_matrix(team, decoder.module.lm_head.weight)
    del decoder.module.lm_head.weight
    embedding = None if tied else model.embed_tokens.weight.data
    del model.embed_tokens.weight
    return DecoderWeights(
        layers=layers,
        norm=model.norm.weight.data,
        epsilon=float(config.rms_norm_eps),
        embedding=embedding,
        head=head,
        heads=Heads(head_count, layout.kv_head_count, layout.head_dim),
        hidden_size=decoder.hidden_size,
        frequencies=frequencies,
        axes=rotary_axes(decoder).to(torch.int32),
        rotary_factor=float(model.rotary_emb.attention_scaling),
    )


def _layers(model: Any, team: Team) -> Iterator[LayerWeights]:
    for layer in model.layers:
        yield _pack_layer(layer, team)
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                parameter.data = parameter.data.new_empty(0)


def _pack_layer(layer: Any, team: Team) -> LayerWeights:
    attention, feed = layer.self_attn, layer.mlp
    states = [attention.q_proj, attention.k_proj, attention.v_proj]
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.data,
        states=pack_matrix(team, torch.cat([part.weight.data for part in states])),
        states_bias=_joined_bias(states),
        head_norms=_head_norms(attention),
        output=pack_matrix(team, attention.o_proj.weight.data),
        output_bias=_joined_bias([attention.o_proj]),
        feed_norm=layer.post_attention_layernorm.weight.data,
        gated=pack_matrix(team, feed.gate_proj.weight.data, feed.up_proj.weight.data),
        gated_bias=_joined_bias([feed.gate_proj, feed.up_proj]),
        down=pack_matrix(team, feed.down_proj.weight.data),
        down_bias=_joined_bias([feed.down_proj]),
        scale=float(attention.scaling),
        window=layer_window(attention),
    )


def _head_norms(attention: Any) -> HeadNorms | None:
    if not hasattr(attention, "q_norm"):
        return None
    query, key = attention.q_norm, attention.k_norm
    assert query.variance_epsilon == key.variance_epsilon, "norms of queries and of keys differ in epsilon"
    return HeadNorms(query.weight.data, key.weight.data, float(query.variance_epsilon))


def _joined_bias(parts: list[nn.Linear]) -> torch.Tensor | None:
    """Biases of layers that are computed as one; a missing one counts as zeros beside others."""
    if all(part.bias is None for part in parts):
        return None
    biases = [
        part.weight.new_zeros(part.out_features) if part.bias is None else part.bias.data for part in parts
    ]
    return torch.cat(biases).contiguous()
