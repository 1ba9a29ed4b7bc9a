"""Takes a decoder that looks at items in every layer apart into packed weights.

Knows the structure of Whisper's decoder: pre-norm layers with layer norms, attention among the text,
attention across, a plain feed-forward; learnt positions. Does not compute. Each original is let go as
soon as it is packed, so that the weights are in memory once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from shared.families.whisper_decoder import WhisperTextDecoder
from shared.kernels.blocks import ACTIVATIONS, Linear, Norm, obstacle
from shared.kernels.library import Team
from shared.kernels.operation import Activation
from shared.kernels.program import Heads, PackedMatrix, pack_matrix


@dataclass(frozen=True, slots=True)
class LookingLayer:
    """One layer.

    Attributes:
        states: query, key and value of the text, side by side.
        query: of the text that looks.
        seen: key and value of items, side by side.
    """

    text_norm: Norm
    states: Linear
    text_output: Linear
    look_norm: Norm
    query: Linear
    seen: Linear
    look_output: Linear
    feed_norm: Norm
    widen: Linear
    narrow: Linear


@dataclass(frozen=True, slots=True)
class LookingWeights:
    """A whole decoder.

    Attributes:
        embedding: row-major (vocabulary, hidden), or None where `head` serves both ways.
        head: the output layer.
        positions: (positions, hidden), added to the embeddings.
    """

    layers: list[LookingLayer]
    norm: Norm
    embedding: torch.Tensor | None
    head: PackedMatrix
    positions: torch.Tensor
    activation: Activation
    heads: Heads
    hidden_size: int


def why_not(decoder: WhisperTextDecoder) -> str | None:
    """Why a decoder cannot run on these kernels, or None where it can."""
    return obstacle(_layers(decoder), decoder.config.activation_function)


def take_looking_weights(decoder: WhisperTextDecoder, team: Team) -> LookingWeights:
    """Packs a decoder for which there is no obstacle. It cannot compute afterwards."""
    model: Any = decoder.module.model
    layout = decoder.kv_layout
    layers = [_pack(layer, team) for layer in _layers(decoder)]
    tied = decoder.module.lm_head.weight is model.embed_tokens.weight
    head = pack_matrix(team, decoder.module.lm_head.weight)
    del decoder.module.lm_head.weight
    embedding = None if tied else model.embed_tokens.weight.data
    del model.embed_tokens.weight
    return LookingWeights(
        layers=layers,
        norm=Norm.of(model.layer_norm),
        embedding=embedding,
        head=head,
        positions=model.embed_positions.weight.data,
        activation=ACTIVATIONS[decoder.config.activation_function],
        heads=Heads(layout.kv_head_count, layout.kv_head_count, layout.head_dim),
        hidden_size=decoder.hidden_size,
    )


def _layers(decoder: WhisperTextDecoder) -> list[Any]:
    model: Any = decoder.module.model
    return list(model.layers)


def _pack(layer: Any, team: Team) -> LookingLayer:
    among, across = layer.self_attn, layer.encoder_attn
    return LookingLayer(
        text_norm=Norm.of(layer.self_attn_layer_norm),
        states=Linear.of(team, among.q_proj, among.k_proj, among.v_proj),
        text_output=Linear.of(team, among.out_proj),
        look_norm=Norm.of(layer.encoder_attn_layer_norm),
        query=Linear.of(team, across.q_proj),
        seen=Linear.of(team, across.k_proj, across.v_proj),
        look_output=Linear.of(team, across.out_proj),
        feed_norm=Norm.of(layer.final_layer_norm),
        widen=Linear.of(team, layer.fc1),
        narrow=Linear.of(team, layer.fc2),
    )
