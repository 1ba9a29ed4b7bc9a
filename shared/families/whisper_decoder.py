"""Whisper's decoder over a flattened batch: text attends to text, and across to recordings.

transformers' decoder runs on the step's rows of text alone. Rows of recordings go in as
`encoder_hidden_states`: every layer makes keys and values of them, which go to the recordings'
slots of the cache and are read from there, in this step and in later ones. A layer's keys of
text and of recordings lie in the same pool, in slots of their own.

Knows tensors and slots. Does not know sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from shared.families.alignment import Alignment
from shared.families.base import Checkpoint, KvLayout, StateShape
from shared.families.decoder import DecoderModule
from shared.families.looking import StepSequence
from shared.families.looking_attention import (
    LOOKING_ATTENTION,
    mark_looking,
    plan_step,
    register_looking_attention,
    rows_of,
)
from shared.families.weights import Prefixes, load_half
from shared.families.whisper_layout import ROW_MULTIPLE


class WhisperTextDecoder:
    """The LLM half with its weights; see `LooksAtItems`.

    Attributes:
        module: the decoder and its output layer.
        config: the whole model's.
        alignment: see `TellsTimes`.
    """

    looks_at_items = True
    item_multiple = ROW_MULTIPLE
    extra_widths: Mapping[str, int] = MappingProxyType({})
    state_shapes: Mapping[str, StateShape] = MappingProxyType({})

    def __init__(self, module: nn.Module, config: Any, alignment: Alignment | None = None) -> None:
        assert isinstance(module, DecoderModule)
        self.alignment = alignment
        self._queries: dict[int, torch.Tensor] = (
            {} if alignment is None else dict.fromkeys(alignment.layers, torch.zeros(0))
        )
        self.module = module
        self.config = config
        self._model: Any = module.model
        self._output_weight = module.lm_head.weight
        self.hidden_size = int(config.d_model)
        self.vocabulary_size = int(self._output_weight.shape[0])
        self.dtype: torch.dtype = self._output_weight.dtype
        heads = int(config.decoder_attention_heads)
        self.kv_layout = KvLayout(int(config.decoder_layers), heads, self.hidden_size // heads)
        layers: Any = module.model.layers
        mark_looking(layer.encoder_attn for layer in layers)

    @torch.inference_mode()
    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 (tokens,) to (tokens, hidden); the token of rows lies behind the vocabulary."""
        known = token_ids.clamp(max=self.vocabulary_size - 1)
        embedded: torch.Tensor = self._model.embed_tokens(known)
        return embedded

    @torch.inference_mode()
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        positions: torch.Tensor,
        *,
        sequences: tuple[StepSequence, ...] = (),
        **attention: Any,
    ) -> torch.Tensor:
        """See `LooksAtItems`. `attention` holds the step's context alone."""
        assert sum(sequence.count for sequence in sequences) == len(inputs_embeds), "rows of nobody"
        text, heard = rows_of(sequences, inputs_embeds.device)
        step = plan_step(attention["attention_context"], sequences, text, heard)
        step = replace(step, queries=self._queries)
        embeds, places = inputs_embeds[text], positions[:, text]
        if not len(text):
            # Modeling code that shapes its tensors by their number of elements needs a row.
            embeds, places = torch.zeros_like(inputs_embeds[:1]), torch.zeros_like(positions[:, :1])
        output = self._model(
            inputs_embeds=embeds.unsqueeze(0),
            position_ids=places,
            use_cache=False,
            encoder_hidden_states=inputs_embeds[heard].unsqueeze(0),
            looking_step=step,
        )
        hidden = torch.zeros_like(inputs_embeds)
        hidden[text] = output.last_hidden_state[0, : len(text)]
        return hidden

    def looking_queries(self, layer: int) -> torch.Tensor:
        """See `TellsTimes`."""
        return self._queries[layer]

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) to float32 (tokens, vocabulary)."""
        return functional.linear(hidden, self._output_weight).float()


def load_whisper_decoder(
    config: Any, checkpoint: Checkpoint, prefixes: Prefixes, device: torch.device, dtype: torch.dtype
) -> WhisperTextDecoder:
    """The LLM half of a checkpoint; see `load_half`."""
    register_looking_attention()
    config._attn_implementation = LOOKING_ATTENTION

    def build() -> nn.Module:
        from transformers.models.whisper.modeling_whisper import WhisperDecoder

        tied = bool(getattr(config, "tie_word_embeddings", True))
        return DecoderModule(WhisperDecoder(config), int(config.d_model), int(config.vocab_size), tied)

    module = load_half(build, checkpoint, "language", prefixes, device, dtype)
    return WhisperTextDecoder(module, config, Alignment.of(checkpoint, config))
