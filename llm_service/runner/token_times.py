"""When the tokens of a sequence are heard, for those who ask for it.

Keeps what a sequence's tokens looked with, step by step, and computes its attention to the
recording once it has ended, from the keys that still lie in its blocks. Knows sequences, slots
and the model's heads. Does not decide when a sequence ends.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch

from llm_service.engine.batch import ScheduledSequence
from llm_service.engine.sequence import Sequence
from llm_service.runner.kv_cache import KvCache
from shared.families.alignment import Alignment, TellsTimes
from shared.families.base import LanguageModel


class TokenTimes:
    """What is kept of all sequences that want times."""

    def __init__(self, model: LanguageModel, cache: KvCache) -> None:
        self._model = model if isinstance(model, TellsTimes) and model.alignment is not None else None
        self._cache = cache
        # By sequence and by token: (heads, head_dim). Preemption loses none: tokens stay the same.
        self._kept: dict[int, dict[int, torch.Tensor]] = {}

    def keep(self, items: Items[ScheduledSequence]) -> None:
        """Notes what tokens of the step that has just run looked with.

        Args:
            items: the whole step, in the order of its rows.
        """
        if self._model is None or not any(item.sequence.token_times for item in items):
            return
        assert self._model.alignment is not None
        queries = self._selected(self._model.alignment)
        row = 0
        for item in items:
            count = _text_count(item, self._model.item_multiple)
            wish, end = item.sequence.token_times, item.start + item.count
            if wish is not None:
                kept = self._kept.setdefault(item.sequence.sequence_id, {})
                for place in range(max(wish.first, end - count), end):
                    kept[place] = queries[row + place - (end - count)].clone()
            row += count

    def _selected(self, alignment: Alignment) -> torch.Tensor:
        """(rows of text, chosen heads, head_dim) of the last step."""
        assert self._model is not None
        by_layer = {layer: self._model.looking_queries(layer) for layer in alignment.layers}
        return torch.stack([by_layer[layer][:, head] for layer, head in alignment.heads], dim=1)

    def seconds(self, sequence: Sequence) -> list[float]:
        """One time for each generated token of a sequence that has ended and still has its blocks.

        As transformers' `token_timestamps`: 0 for what came in front of the answer proper, and
        the last token, which looked at nothing, has the time of the one before.
        """
        wish = sequence.token_times
        assert wish is not None and self._model is not None and self._model.alignment is not None
        kept = self._kept.get(sequence.sequence_id, {})
        places = range(wish.first, len(sequence.token_ids) - 1)
        if not places:
            return [0.0] * sequence.output_count
        queries = torch.stack([kept[place] for place in places]).float()
        weights = self._weights(queries, sequence)[..., : max(1, wish.row_count)]
        heard = self._model.alignment.token_seconds(weights)
        return [0.0] * (sequence.output_count - len(heard) - 1) + heard + heard[-1:]

    def _weights(self, queries: torch.Tensor, sequence: Sequence) -> torch.Tensor:
        """Attention of (tokens, heads, head_dim) to the recording: float32 (heads, tokens, rows)."""
        assert self._model is not None and self._model.alignment is not None
        span, size = sequence.spans[0], self._cache.block_size
        places = torch.arange(span.start, span.start + span.length, device=queries.device)
        blocks = torch.tensor(sequence.block_table, device=queries.device)
        slots = blocks[places // size] * size + places % size
        weights = []
        for index, (layer, head) in enumerate(self._model.alignment.heads):
            keys = self._cache.keys[layer].flatten(0, 1)[slots, head].float()
            weights.append(torch.softmax(queries[:, index] @ keys.T, dim=-1))
        return torch.stack(weights)

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence."""
        self._kept.pop(sequence_id, None)


def _text_count(item: ScheduledSequence, multiple: int) -> int:
    """Tokens of text in this step: those behind the rows of items and what fills them up."""
    ahead = -(-item.sequence.media_end // multiple) * multiple
    return min(item.count, max(0, item.start + item.count - ahead))
