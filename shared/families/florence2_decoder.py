"""Florence-2's language model over a flattened batch: BART's encoder at prefill, its decoder in every step.

The encoder runs in the step that holds a sequence's front, a picture's rows and a task's words,
over that front alone. Every decoder layer makes keys and values of what it gives; they go to
the front's slots of the cache and are read from there, in this step and in later ones.

The layers are transformers' own. Their order is written down here, as BART's decoder counts
positions by itself and would not take those of a flattened batch.

Knows tensors and slots. Does not know pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from shared.families.base import KvLayout, StateShape
from shared.families.florence2_layout import ROW_MULTIPLE
from shared.families.looking import StepSequence
from shared.families.looking_attention import (
    LOOKING_ATTENTION,
    LookingStep,
    mark_looking,
    plan_step,
    rows_of,
)


class Bart(nn.Module):
    """One embedding of tokens, and the encoder and the decoder that share it."""

    def __init__(self, config: Any) -> None:
        """Args:
        config: BART's.
        """
        from transformers.models.bart.modeling_bart import BartDecoder, BartEncoder, BartScaledWordEmbedding

        super().__init__()
        reading, writing = copy(config), copy(config)
        reading._attn_implementation = "sdpa"
        writing._attn_implementation = LOOKING_ATTENTION
        width = int(config.d_model)
        scale = width**0.5 if config.scale_embedding else 1.0
        self.shared: nn.Module = BartScaledWordEmbedding(
            int(config.vocab_size), width, config.pad_token_id, scale
        )
        self.encoder: Any = BartEncoder(reading)
        self.decoder: Any = BartDecoder(writing)
        self.encoder.embed_tokens = self.decoder.embed_tokens = None

    @property
    def embed_tokens(self) -> nn.Module:
        """The embedding by the name that other models have for it."""
        return self.shared


class BartModule(nn.Module):
    """A `Bart` and the output layer beside it."""

    def __init__(self, config: Any) -> None:
        """Args:
        config: BART's.
        """
        super().__init__()
        self.tied = True
        self.model = Bart(config)
        self.lm_head = nn.Linear(int(config.d_model), int(config.vocab_size), bias=False)


class Florence2TextModel:
    """The LLM half with its weights; see `LooksAtItems`."""

    looks_at_items = True
    item_multiple = ROW_MULTIPLE
    extra_widths: Mapping[str, int] = MappingProxyType({})
    state_shapes: Mapping[str, StateShape] = MappingProxyType({})

    def __init__(self, module: nn.Module, config: Any) -> None:
        """Args:
        module: a `BartModule`.
        config: BART's.
        """
        assert isinstance(module, BartModule)
        self.module = module
        self._encoder, self._decoder = module.model.encoder, module.model.decoder
        self._embeddings = module.model.shared
        self._output_weight = module.lm_head.weight
        self._position_count = int(config.max_position_embeddings)
        self.hidden_size = int(config.d_model)
        self.vocabulary_size = int(self._output_weight.shape[0])
        self.dtype: torch.dtype = self._output_weight.dtype
        heads = int(config.decoder_attention_heads)
        self.kv_layout = KvLayout(int(config.decoder_layers), heads, self.hidden_size // heads)
        mark_looking(layer.encoder_attn for layer in self._decoder.layers)

    @torch.inference_mode()
    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 (tokens,) to (tokens, hidden); a picture's token may lie behind the vocabulary."""
        embedded: torch.Tensor = self._embeddings(token_ids.clamp(max=self.vocabulary_size - 1))
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
        text, front = rows_of(sequences, inputs_embeds.device)
        step = plan_step(attention["attention_context"], sequences, text, front)
        states = self._read(inputs_embeds, sequences)
        embeds, places = inputs_embeds[text], positions[0, text]
        if not len(text):
            # Modeling code that shapes its tensors by their number of elements needs a row.
            embeds, places = torch.zeros_like(inputs_embeds[:1]), torch.zeros_like(positions[0, :1])
        hidden = torch.zeros_like(inputs_embeds)
        hidden[text] = self._write(embeds, places, states, step)[: len(text)]
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) to float32 (tokens, vocabulary)."""
        return functional.linear(hidden, self._output_weight).float()

    def _read(self, inputs_embeds: torch.Tensor, sequences: Sequence[StepSequence]) -> torch.Tensor:
        """The encoder's states (rows, hidden) of all fronts of the step, one after the other.

        One row that means nothing where there is none; see `forward`.
        """
        states = []
        for sequence in sequences:
            if sequence.start < sequence.filled:
                assert sequence.start == 0 and sequence.count >= sequence.filled, "a step cuts a front"
                front = inputs_embeds[sequence.row : sequence.row + sequence.filled]
                states.append(self._encoder(inputs_embeds=front.unsqueeze(0)).last_hidden_state[0])
        return torch.cat(states) if states else torch.zeros_like(inputs_embeds[:1])

    def _write(
        self, embeds: torch.Tensor, places: torch.Tensor, states: torch.Tensor, step: LookingStep
    ) -> torch.Tensor:
        """The decoder on (rows, hidden) at int64 (rows,) places: final hidden states, (rows, hidden)."""
        decoder = self._decoder
        table = decoder.embed_positions
        # What stands in for the largest step at start counts further than any prompt may.
        known = places.clamp(max=self._position_count - 1) + table.offset
        hidden = embeds + functional.embedding(known, table.weight)
        hidden = decoder.layernorm_embedding(hidden).unsqueeze(0)
        for layer in decoder.layers:
            hidden = layer(hidden, encoder_hidden_states=states.unsqueeze(0), looking_step=step)
        written: torch.Tensor = hidden[0]
        return written
