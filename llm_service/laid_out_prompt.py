"""A prompt with the rows of its media laid out, packed for the engine.

Knows the layout and the engine's message. Does not know where rows come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_service.engine.messages import (
    AddSequence,
    SamplingSettings,
    SpanMessage,
    StoppingSettings,
)
from llm_service.engine.times_wish import TokenTimesWish
from shared.families.base import ExpandedPrompt


@dataclass(frozen=True, slots=True)
class LaidOutPrompt:
    """What all choices of a request share.

    Attributes:
        item_of_span: index of the item that fills each span.
        token_count: tokens with all rows.
        item_token_counts: tokens that are rows of each item.
        variant: which set of weights computes it; see `ExpandedPrompt`.
        most_new: most tokens that may follow it, or None; likewise.
    """

    token_ids: bytes
    positions: bytes
    axes: int
    next_position: int
    spans: list[SpanMessage]
    item_of_span: list[int]
    token_count: int
    item_token_counts: list[int]
    variant: str = ""
    most_new: int | None = None

    @classmethod
    def of(cls, expanded: ExpandedPrompt, keys: Sequence[str]) -> LaidOutPrompt:
        """Packs an expanded prompt.

        Args:
            keys: content keys of the prompt's items.
        """
        spans = [
            SpanMessage(keys[span.item], span.start, span.length, span.splittable, span.first_row, span.tail)
            for span in expanded.spans
        ]
        item_token_counts = [0] * len(keys)
        for span in expanded.spans:
            item_token_counts[span.item] += span.length
        return cls(
            token_ids=np.asarray(expanded.token_ids, dtype="<i4").tobytes(),
            positions=np.ascontiguousarray(expanded.positions, dtype="<i4").tobytes(),
            axes=expanded.positions.shape[0],
            next_position=int(expanded.next_position),
            spans=spans,
            item_of_span=[span.item for span in expanded.spans],
            token_count=len(expanded.token_ids),
            item_token_counts=item_token_counts,
            variant=expanded.variant,
            most_new=expanded.most_new,
        )

    def sequence(
        self,
        sequence_id: int,
        sampling: SamplingSettings,
        stopping: StoppingSettings,
        arrival: float,
        token_times: TokenTimesWish | None = None,
        *,
        tokens_may_wait: bool = False,
    ) -> AddSequence:
        """The message that starts one choice."""
        return AddSequence(
            sequence_id=sequence_id,
            token_ids=self.token_ids,
            positions=self.positions,
            axes=self.axes,
            next_position=self.next_position,
            spans=self.spans,
            sampling=sampling,
            stopping=stopping,
            arrival=arrival,
            variant=self.variant,
            token_times=token_times,
            tokens_may_wait=tokens_may_wait,
        )
