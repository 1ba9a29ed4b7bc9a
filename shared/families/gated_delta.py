"""Gated delta layers (linear attention) on a flat batch of several sequences.

The modeling code runs such a layer on whole sequences, one row of a batch each,
with a cache object beside it. Here each sequence of a step runs on its own part,
from the state that it left; those of one token run together. Knows the calling
convention of the modeling code's layers and caches. Does not know where states lie.

Source of the layer: Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta
Rule", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from shared.families.base import KvLayout, StateShape, StepStates
from shared.families.decoder import Decoder

CONVOLUTION = "convolution"
RECURRENT = "recurrent"

FULL = "full_attention"
LINEAR = "linear_attention"


class GatedDeltaDecoder(Decoder):
    """A decoder some of whose layers are gated delta layers; see `LanguageModel`.

    Attributes:
        state_shapes: the last inputs of each layer's convolution, and its recurrent state.
    """

    def __init__(self, module: nn.Module, text_config: Any, axes: int) -> None:
        super().__init__(module, text_config, axes)
        layers = list(self._model.layers)
        full = [layer.self_attn for layer in layers if layer.block_type == FULL]
        linear = [layer.linear_attn for layer in layers if layer.block_type == LINEAR]
        assert len(full) + len(linear) == len(layers), "layers of an unknown type"
        # The paged cache holds layers with keys and values alone.
        for index, attention in enumerate(full):
            attention.layer_idx = index
        self.kv_layout = KvLayout(len(full), self.kv_layout.kv_head_count, self.kv_layout.head_dim)
        for index, layer in enumerate(linear):
            layer.forward = StatefulLayer(layer, index).run
        self.state_shapes = state_shapes(linear)


def state_shapes(layers: list[Any]) -> Mapping[str, StateShape]:
    """What gated delta layers of one model keep of a sequence."""
    if not layers:
        return MappingProxyType({})
    one = layers[0]
    convolution = (one.conv_dim, one.conv_kernel_size)
    recurrent = (one.num_v_heads, one.head_k_dim, one.head_v_dim)
    return {
        CONVOLUTION: StateShape(len(layers), convolution, exact=False),
        RECURRENT: StateShape(len(layers), recurrent, exact=True),
    }


class StatefulLayer:
    """One layer, called as the modeling code calls it.

    Args:
        layer: the modeling code's own.
        index: its place among the layers that keep states.
    """

    def __init__(self, layer: Any, index: int) -> None:
        # Bound before the layer's own name for it is overwritten.
        self._forward = layer.forward
        self._index = index

    def run(self, hidden_states: torch.Tensor, states: StepStates | None = None, **_: Any) -> torch.Tensor:
        """(1, tokens, hidden) to the same; without `states` a whole sequence from its first token on."""
        if states is None:
            whole: torch.Tensor = self._forward(hidden_states)
            return whole
        singles = states.single_count
        parts = []
        if singles:
            rows = self._advance(hidden_states[0, :singles, None], states, slice(0, singles))
            parts.append(rows.transpose(0, 1))
        first = singles
        for sequence, count in enumerate(states.counts[singles:], start=singles):
            chunk = hidden_states[:, first : first + count]
            parts.append(self._advance(chunk, states, slice(sequence, sequence + 1)))
            first += count
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _advance(self, hidden: torch.Tensor, states: StepStates, sequences: slice) -> torch.Tensor:
        """(sequences, tokens, hidden) to the same, from the sequences' states to their next ones."""
        cache = _LayerCache(
            states.read(CONVOLUTION, self._index, sequences), states.read(RECURRENT, self._index, sequences)
        )
        output: torch.Tensor = self._forward(hidden, cache_params=cache)
        states.write(CONVOLUTION, self._index, sequences, cache.convolution)
        states.write(RECURRENT, self._index, sequences, cache.recurrent)
        return output


class _LayerCache:
    """What a layer asks of transformers' cache, for the layer that runs now alone."""

    def __init__(self, convolution: torch.Tensor, recurrent: torch.Tensor) -> None:
        self.convolution = convolution
        self.recurrent = recurrent

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor:
        """(sequences, channels, kernel size); a step of one token changes it in place."""
        return self.convolution

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor:
        """(sequences, heads, key width, value width), float32."""
        return self.recurrent

    def is_recording_past(self, layer_idx: int) -> bool:
        """Whether states before the last are kept, which is for speculation."""
        return False

    def update_conv_state(self, inputs: torch.Tensor, layer_idx: int, conv_kernel_size: int) -> torch.Tensor:
        """(sequences, channels, tokens) inputs behind those that are kept; the last of them are kept."""
        joined = torch.cat([self.convolution, inputs], dim=-1)
        self.convolution = joined[..., -conv_kernel_size:]
        return joined

    def update_recurrent_state(self, state: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Keeps the state behind the last token."""
        self.recurrent = state
        return state
