"""Attention of a step whose text looks at items across, in torch, over slots of the paged cache.

Knows rows, slots and masks; which rows see which is its callers'. The attention function that
modeling code calls is here too: modules that look are marked, since they may have the same layer
index as those that attend among the text. Does not know any family.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from shared.families.looking import StepSequence

LOOKING_ATTENTION = "percept_looking"
"""No mask is built for a name that has no mask function."""

_MARK = "percept_looks_across"


@dataclass(frozen=True, slots=True)
class LookingPart:
    """The text of one sequence in a step.

    Attributes:
        rows: among the step's rows of text.
        text_slots: int64 (keys,), of all its text up to this step's end.
        text_mask: bool (rows, keys), which keys each row sees; None: all.
        item_slots: int64 (keys,), of its items; none where it has no items.
        item_mask: bool (rows, keys); None: all.
    """

    rows: slice
    text_slots: torch.Tensor
    text_mask: torch.Tensor | None
    item_slots: torch.Tensor
    item_mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class LookingStep:
    """What every layer of a step needs.

    Attributes:
        cache: where keys and values are.
        text_slots, item_slots: int64 (n,), where the step's own keys and values go.
        parts: the step's text, sequence by sequence.
        queries: takes what the text of each layer that is in it looks at items with.
    """

    cache: Any
    text_slots: torch.Tensor
    item_slots: torch.Tensor
    parts: list[LookingPart]
    queries: dict[int, torch.Tensor] | None = None

    def attend(
        self,
        layer: int,
        looks: bool,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
    ) -> torch.Tensor:
        """Writes the layer's new keys and values and attends.

        Args:
            looks: across, at items; else among the text.
            query: (rows of text, heads, head_dim).
            key: (rows of text, or of items where it looks, kv_heads, head_dim).
            value: likewise.

        Returns:
            As the query; zero for rows that see nothing.
        """
        slots = self.item_slots if looks else self.text_slots
        # Behind the slots there may be a row that only stands for "no text at all".
        if len(slots):
            self.cache.write(layer, slots, key[: len(slots)], value[: len(slots)])
        if looks and self.queries is not None and layer in self.queries:
            self.queries[layer] = query if scaling is None else query * scaling
        keys, values = (pool[layer].flatten(0, 1) for pool in (self.cache.keys, self.cache.values))
        output = torch.zeros_like(query, memory_format=torch.contiguous_format)
        for part in self.parts:
            seen, mask = (part.item_slots, part.item_mask) if looks else (part.text_slots, part.text_mask)
            if len(seen):
                output[part.rows] = _attend(query[part.rows], keys[seen], values[seen], mask, scaling)
        return output


def register_looking_attention() -> None:
    """Makes `LOOKING_ATTENTION` known to transformers. May be called again."""
    from transformers import AttentionInterface

    AttentionInterface.register(LOOKING_ATTENTION, _looking_attention)


def mark_looking(modules: Iterable[nn.Module]) -> None:
    """Says of attention modules that they look at items."""
    for module in modules:
        setattr(module, _MARK, True)


def text_count(sequence: StepSequence) -> int:
    """Tokens of text in this step: the last ones."""
    return min(sequence.count, max(0, sequence.start + sequence.count - sequence.ahead))


def rows_of(sequences: Sequence[StepSequence], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The step's rows of text and those of items, int64 each."""
    text: list[int] = []
    items: list[int] = []
    for sequence in sequences:
        end = sequence.row + sequence.count
        first = end - text_count(sequence)
        items.extend(range(sequence.row, min(first, sequence.row + sequence.filled - sequence.start)))
        text.extend(range(first, end))
    return torch.tensor(text, device=device).long(), torch.tensor(items, device=device).long()


def slots_of(context: Any, index: int, length: int) -> torch.Tensor:
    """Slots of a sequence's first `length` tokens, int64."""
    size = context.cache.block_size
    blocks = context.shape.block_tables[index, : -(-length // size)]
    offsets = torch.arange(size, device=blocks.device)
    slots: torch.Tensor = (blocks[:, None] * size + offsets).flatten()[:length]
    return slots


def text_mask(sequence: StepSequence, count: int, device: torch.device) -> torch.Tensor | None:
    """bool (count, text up to the step's end): a token sees those up to itself. None for one token."""
    if count == 1:
        return None
    length = sequence.start + sequence.count - sequence.ahead
    return torch.ones(count, length, dtype=torch.bool, device=device).tril(length - count)


def plan_step(
    context: Any, sequences: Sequence[StepSequence], text: torch.Tensor, items: torch.Tensor
) -> LookingStep:
    """Slots and masks of a step whose text sees itself up to each token, and all rows of its items.

    Args:
        context: the step's.
        text, items: as `rows_of` gives them.
    """
    parts: list[LookingPart] = []
    first = 0
    for index, sequence in enumerate(sequences):
        count = text_count(sequence)
        if not count:
            continue
        slots = slots_of(context, index, sequence.start + sequence.count)
        mask = text_mask(sequence, count, slots.device)
        rows = slice(first, first + count)
        parts.append(LookingPart(rows, slots[sequence.ahead :], mask, slots[: sequence.filled], None))
        first += count
    return LookingStep(context.cache, context.slots[text], context.slots[items], parts)


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
    looks = getattr(module, _MARK, False)
    return looking_step.attend(layer, looks, query, key, value, scaling).unsqueeze(0), None


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
