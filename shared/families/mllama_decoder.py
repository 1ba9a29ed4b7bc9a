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
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from shared.families.base import LanguageModel
from shared.families.decoder import Decoder, load_decoder
from shared.families.looking import StepSequence
from shared.families.mllama_layout import pictures_seen
from shared.families.mllama_pictures import PREFIXES

LOOKING_ATTENTION = "percept_looking"
"""No mask is built for a name that has no mask function."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The text of one sequence in a step.

    Attributes:
        rows: among the step's rows of text.
        text_slots: int64 (keys,), of all its text up to this step's end.
        text_mask: bool (rows, keys), which keys each row sees; None: all.
        picture_slots: int64 (keys,), of its pictures; none where it has no pictures.
        picture_mask: bool (rows, keys); None: all.
    """

    rows: slice
    text_slots: torch.Tensor
    text_mask: torch.Tensor | None
    picture_slots: torch.Tensor
    picture_mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class LookingStep:
    """What every layer of a step needs; see `_plan`.

    Attributes:
        cache: where keys and values are.
        looking_layers: indices of the layers that look at pictures.
        text_slots, picture_slots: int64 (n,), where the step's own keys and values go.
        parts: the step's text, sequence by sequence.
    """

    cache: Any
    looking_layers: frozenset[int]
    text_slots: torch.Tensor
    picture_slots: torch.Tensor
    parts: list[_Part]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Writes the layer's new keys and values and attends.

        Args:
            query: (rows of text, heads, head_dim).
            key: (rows of text, or of pictures where the layer looks, kv_heads, head_dim).
            value: likewise.

        Returns:
            As the query; zero for rows that see nothing.
        """
        looks = layer in self.looking_layers
        slots = self.picture_slots if looks else self.text_slots
        # Behind the slots there may be a row that only stands for "no text at all".
        if len(slots):
            self.cache.write(layer, slots, key[: len(slots)], value[: len(slots)])
        keys, values = (pool[layer].flatten(0, 1) for pool in (self.cache.keys, self.cache.values))
        output = torch.zeros_like(query, memory_format=torch.contiguous_format)
        for part in self.parts:
            seen, mask = (
                (part.picture_slots, part.picture_mask) if looks else (part.text_slots, part.text_mask)
            )
            if len(seen):
                output[part.rows] = _attend(query[part.rows], keys[seen], values[seen], mask, scaling)
        return output


class MllamaDecoder(Decoder):
    """See `LooksAtItems`."""

    looks_at_items = True

    def __init__(self, module: nn.Module, text_config: Any, axes: int) -> None:
        super().__init__(module, text_config, axes)
        self._looking_layers = frozenset(text_config.cross_attention_layers)
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
        text, pictures = _rows_of(sequences, inputs_embeds.device)
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
        parts: list[_Part] = []
        sees = torch.zeros(len(text), dtype=torch.bool)
        first = 0
        for index, sequence in enumerate(sequences):
            count = _text_count(sequence)
            if not count:
                continue
            slots = _slots(context, index, sequence.start + sequence.count)
            rows = slice(first, first + count)
            mask, sees[rows] = self._picture_mask(sequence, count)
            parts.append(
                _Part(
                    rows,
                    slots[sequence.ahead :],
                    _text_mask(sequence, count, slots.device),
                    slots[: sequence.ahead],
                    None if mask is None else mask.to(slots.device),
                )
            )
            first += count
        step = LookingStep(
            context.cache, self._looking_layers, context.slots[text], context.slots[pictures], parts
        )
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
    from transformers import AttentionInterface

    AttentionInterface.register(LOOKING_ATTENTION, _looking_attention)
    decoder = load_decoder(
        _build_text_model, config, checkpoint, PREFIXES, device, dtype, LOOKING_ATTENTION, 1, MllamaDecoder
    )
    assert isinstance(decoder, MllamaDecoder)
    return decoder.know_pictures_by(int(config.image_token_index))


def _build_text_model(config: Any) -> nn.Module:
    from transformers import MllamaTextModel

    module: nn.Module = MllamaTextModel(config)
    return module


def _looking_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    looking_step: LookingStep,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function that modeling code calls: (1, heads, rows, head_dim) to (1, rows, heads, head_dim)."""
    assert attention_mask is None, "the modeling code built a mask for paged attention"
    layer = module.layer_idx
    assert isinstance(layer, int), "an attention module without a layer index"
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    return looking_step.attend(layer, query, key, value, scaling).unsqueeze(0), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of one sequence, (rows, heads, head_dim); without a mask every row sees every key."""
    output: torch.Tensor = functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        attn_mask=mask,
        scale=scaling,
        enable_gqa=True,
    )
    return output.squeeze(0).transpose(0, 1)


def _text_count(sequence: StepSequence) -> int:
    """Tokens of text in this step: the last ones."""
    return min(sequence.count, max(0, sequence.start + sequence.count - sequence.ahead))


def _rows_of(sequences: Sequence[StepSequence], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The step's rows of text and those of pictures, int64 each."""
    text: list[int] = []
    pictures: list[int] = []
    for sequence in sequences:
        end = sequence.row + sequence.count
        first = end - _text_count(sequence)
        pictures.extend(range(sequence.row, first))
        text.extend(range(first, end))
    return torch.tensor(text, device=device).long(), torch.tensor(pictures, device=device).long()


def _slots(context: Any, index: int, length: int) -> torch.Tensor:
    """Slots of a sequence's first `length` tokens, int64."""
    size = context.cache.block_size
    blocks = context.shape.block_tables[index, : -(-length // size)]
    offsets = torch.arange(size, device=blocks.device)
    slots: torch.Tensor = (blocks[:, None] * size + offsets).flatten()[:length]
    return slots


def _text_mask(sequence: StepSequence, count: int, device: torch.device) -> torch.Tensor | None:
    """bool (count, text up to the step's end): a token sees those up to itself. None for one token."""
    if count == 1:
        return None
    length = sequence.start + sequence.count - sequence.ahead
    return torch.ones(count, length, dtype=torch.bool, device=device).tril(length - count)
