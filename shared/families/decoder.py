"""A Hugging Face text model on a flattened batch, with an attention function of ours.

Knows how the modeling code is called. Does not know what the attention function
does, where keys and values live, or which family this is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from shared.families.base import Checkpoint, KvLayout, StateShape
from shared.families.weights import Fit, Prefixes, load_half


class DecoderModule(nn.Module):
    """A text model without its head, and the output layer beside it."""

    def __init__(self, model: nn.Module, hidden_size: int, vocabulary_size: int, tied: bool) -> None:
        super().__init__()
        self.tied = tied
        self.model = model
        self.lm_head = nn.Linear(hidden_size, vocabulary_size, bias=False)


class Decoder:
    """The LLM half with its weights; see `LanguageModel`.

    Attributes:
        module: the text model and its output layer.
        axes: rows of the positions, 3 with M-RoPE, else 1.
        dtype: element type of the weights.
        extra_widths: none; see `LanguageModel`.
        state_shapes: likewise.
    """

    extra_widths: Mapping[str, int] = MappingProxyType({})
    state_shapes: Mapping[str, StateShape] = MappingProxyType({})

    def __init__(self, module: nn.Module, text_config: Any, axes: int) -> None:
        assert isinstance(module, DecoderModule)
        self.module = module
        self.axes = axes
        self._model: Any = module.model
        self._embeddings: Any = self._model.embed_tokens
        self._output_weight = module.lm_head.weight
        self._axes = axes
        self.hidden_size = int(text_config.hidden_size)
        self.vocabulary_size = int(self._output_weight.shape[0])
        self.dtype: torch.dtype = self._output_weight.dtype
        self.kv_layout = kv_layout(text_config)

    @torch.inference_mode()
    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 (tokens,) to (tokens, hidden)."""
        embedded: torch.Tensor = self._embeddings(token_ids)
        return embedded

    @torch.inference_mode()
    def forward(self, inputs_embeds: torch.Tensor, positions: torch.Tensor, **attention: Any) -> torch.Tensor:
        """Runs all layers on (tokens, hidden) with positions (axes, tokens); see `LanguageModel`."""
        output = self._model(
            inputs_embeds=inputs_embeds.unsqueeze(0),
            position_ids=self._position_ids(positions),
            use_cache=False,
            **attention,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) to float32 (tokens, vocabulary)."""
        return functional.linear(hidden, self._output_weight).float()

    def _position_ids(self, positions: torch.Tensor) -> torch.Tensor:
        """The modeling code's shape: (3, 1, tokens) with M-RoPE, else (1, tokens)."""
        if self._axes == 1:
            return positions
        return positions.expand(self._axes, -1).unsqueeze(1)


def kv_layout(text_config: Any) -> KvLayout:
    """What the KV cache must hold for a text configuration."""
    head_dim = getattr(text_config, "head_dim", None)
    head_count = text_config.num_attention_heads
    return KvLayout(
        layer_count=int(text_config.num_hidden_layers),
        kv_head_count=int(getattr(text_config, "num_key_value_heads", None) or head_count),
        head_dim=int(head_dim or text_config.hidden_size // head_count),
    )


def load_decoder(
    build: Callable[[Any], nn.Module],
    config: Any,
    checkpoint: Checkpoint,
    prefixes: Prefixes,
    device: torch.device,
    dtype: torch.dtype,
    attention_name: str,
    axes: int,
    make: Callable[[nn.Module, Any, int], Decoder] = Decoder,
    fits: Mapping[str, Fit] = MappingProxyType({}),
    renamed: Mapping[str, str] = MappingProxyType({}),
    read_apart: tuple[str, ...] = (),
) -> Decoder:
    """Loads the LLM half of a checkpoint.

    Args:
        build: makes the text model, without a head, from its configuration.
        config: configuration of the whole model.
        prefixes: where each tensor belongs; the half's names begin with
            "model." or are "lm_head.weight".
        attention_name: a function registered with transformers.
        axes: 3 with M-RoPE, else 1.
        make: makes the decoder from its module, its text configuration and `axes`.
        fits: see `load_half`.
        renamed: see `load_half`.
        read_apart: see `load_half`.

    Raises:
        InvalidRequestError: weights that do not fit.
    """
    text_config = config.get_text_config()
    text_config._attn_implementation = attention_name
    text_config.use_cache = False

    def build_half() -> nn.Module:
        size, vocabulary = text_config.hidden_size, text_config.vocab_size
        return DecoderModule(
            build(text_config), size, vocabulary, bool(getattr(config, "tie_word_embeddings", False))
        )

    module = load_half(build_half, checkpoint, "language", prefixes, device, dtype, fits, renamed, read_apart)
    return make(module, text_config, axes)
