"""Llama 3.2 Vision's language model over a flattened batch: text attends to text, and across to pictures.

transformers' text model runs on the step's rows of text alone. Rows of pictures go in as
`cross_attention_states`: every looking layer makes keys and values of them, which go to
the pictures' slots of the cache and are read from there, in this step and in later ones.

What tokens see follows transformers to the letter. A token in front of a prompt's first
picture sees nothing by the mask; transformers then masks nothing, so that it looks at all
rows of all pictures, places without a tile included, and only the layer's feed-forward part
is left out for it. Sequences without pictures pass looking layers as they are.

Knows tensors, slots and layers. Does not know pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from shared.families.base import LanguageModel
from shared.families.decoder import Decoder, load_decoder
from shared.families.looking import StepSequence
from shared.families.looking_attention import (
    LOOKING_ATTENTION,
    LookingPart,
    LookingStep,
    mark_looking,
    register_looking_attention,
    rows_of,
    slots_of,
    text_count,
    text_mask,
)
from shared.families.mllama_layout import pictures_seen
from shared.families.mllama_pictures import PREFIXES


class MllamaDecoder(Decoder):
    """See `LooksAtItems`."""

    looks_at_items = True
    item_multiple = 1

    def __init__(self, module: nn.Module, text_config: Any, axes: int) -> None:
        super().__init__(module, text_config, axes)
        mark_looking(self._model.layers[layer].cross_attn for layer in text_config.cross_attention_layers)
        # A picture's token lies behind the tokens that can be generated.
        self._picture_id = 0

    def know_pictures_by(self, token_id: int) -> MllamaDecoder:
        """Tells the token of a picture; returns itself."""
        self._picture_id = token_id
        return self

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
        context = attention["attention_context"]
        text, pictures = rows_of(sequences, inputs_embeds.device)
        step, sees = self._plan(context, sequences, text, pictures)
        embeds, places = inputs_embeds[text], positions[:, text]
        if not len(text):
            # Modeling code that shapes its tensors by their number of elements needs a row.
            embeds, places = torch.zeros_like(inputs_embeds[:1]), torch.zeros_like(positions[:, :1])
            sees = torch.zeros(1, dtype=torch.bool, device=embeds.device)
        has_pictures = any(sequence.spans for sequence in sequences)
        output = self._model(
            inputs_embeds=embeds.unsqueeze(0),
            position_ids=places,
            use_cache=False,
            cross_attention_states=inputs_embeds[pictures].unsqueeze(0) if has_pictures else None,
            full_text_row_masked_out_mask=sees.to(embeds.dtype)[None, None, :, None],
            looking_step=step,
        )
        hidden = torch.zeros_like(inputs_embeds)
        hidden[text] = output.last_hidden_state[0, : len(text)]
        return hidden

    def _plan(
        self, context: Any, sequences: Sequence[StepSequence], text: torch.Tensor, pictures: torch.Tensor
    ) -> tuple[LookingStep, torch.Tensor]:
        """Slots and masks of a step; and which rows of text see a picture by the mask, bool (rows,)."""
        parts: list[LookingPart] = []
        sees = torch.zeros(len(text), dtype=torch.bool)
        first = 0
        for index, sequence in enumerate(sequences):
            count = text_count(sequence)
            if not count:
                continue
            slots = slots_of(context, index, sequence.start + sequence.count)
            rows = slice(first, first + count)
            mask, sees[rows] = self._picture_mask(sequence, count)
            parts.append(
                LookingPart(
                    rows,
                    slots[sequence.ahead :],
                    text_mask(sequence, count, slots.device),
                    slots[: sequence.ahead],
                    None if mask is None else mask.to(slots.device),
                )
            )
            first += count
        step = LookingStep(context.cache, context.slots[text], context.slots[pictures], parts)
        return step, sees.to(text.device)

    def _picture_mask(
        self, sequence: StepSequence, count: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | bool]:
        """Which rows of pictures each of the last `count` tokens sees, None for all; and whether any."""
        if not sequence.spans:
            return None, False
        end = sequence.start + sequence.count
        begin = end - count
        runs = pictures_seen(sequence.token_ids, sequence.spans, self._picture_id, begin, end)
        mask = torch.zeros(count, sequence.ahead, dtype=torch.bool)
        for (start, seen), (stop, _) in zip(runs, [*runs[1:], (end, [])], strict=True):
            for lowest, highest in seen:
                mask[start - begin : stop - begin, lowest:highest] = True
        sees = mask.any(dim=1)
        mask[~sees] = True
        return (None if bool(mask.all()) else mask), sees


def load_mllama_decoder(
    config: Any, checkpoint: Any, device: torch.device, dtype: torch.dtype
) -> LanguageModel:
    """The LLM half of a checkpoint; see `load_decoder`."""
    register_looking_attention()
    decoder = load_decoder(
        _build_text_model, config, checkpoint, PREFIXES, device, dtype, LOOKING_ATTENTION, 1, MllamaDecoder
    )
    assert isinstance(decoder, MllamaDecoder)
    return decoder.know_pictures_by(int(config.image_token_index))


def _build_text_model(config: Any) -> nn.Module:
    from transformers import MllamaTextModel

    module: nn.Module = MllamaTextModel(config)
    return module
