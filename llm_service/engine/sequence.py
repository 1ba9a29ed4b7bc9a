"""A sequence: one completion inside the engine, from its prompt to its last token.

Knows its tokens, where its media lie, how far it is computed and which blocks
it holds. Does not know the pool, the schedule or the model; the runner reads
it and never writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from llm_service.engine.messages import (
    AddSequence,
    SamplingSettings,
    SpanMessage,
    StoppingSettings,
)
from llm_service.engine.times_wish import TokenTimesWish

FinishReason = Literal["stop", "length"]


class Sequence:
    """One completion.

    Attributes:
        token_ids: prompt, then generated tokens: all that is known.
        prompt_length: tokens of the expanded prompt.
        spans: placeholder runs in order of `start`.
        positions: int64 (axes, prompt_length) rotary positions of the prompt.
        next_position: position of the first generated token, on every axis.
        variant: which set of weights computes it, "" for the plain one.
        token_times: set where its end tells when its tokens are heard.
        tokens_may_wait: nobody waits for its tokens between the first and the last.
        switched: it is computed as the model computes sequences that have passed its
            `switch_length`; see `ChoosesByRow`.
        computed_count: leading tokens whose keys and values are in the blocks.
        block_table: block ids, the first for tokens 0 to block size - 1.
        block_hashes: content hashes of the leading full blocks, as far as
            they were asked for.
        cached_count: prompt tokens that the prefix cache served at first, or
            None before the first blocks.
        passed_count: sequences admitted past it while it waited.
        yield_count: times that it gave its blocks up while it waited for rows.
        held_up: True after a step in which an unsplittable span found too
            little of the token budget; such a sequence goes first.
        asked: keys that were asked for with `RowsNeeded` and not closed since.
        media_end: the first token behind all rows of items.
        unused: keys whose rows are not all in the blocks, with the index of the
            span that needs them next, for `RowsUsed`.
        scheduled_at: when its first step began, in monotonic seconds, or None before.
    """

    def __init__(self, message: AddSequence, switch_length: int | None = None) -> None:
        self.sequence_id = message.sequence_id
        self.arrival = message.arrival
        self.token_ids: list[int] = np.frombuffer(message.token_ids, dtype="<i4").tolist()
        self.prompt_length = len(self.token_ids)
        self.positions = _read_positions(message, self.prompt_length)
        self.next_position = message.next_position
        self.variant = message.variant
        self.switched = False
        self.spans: list[SpanMessage] = message.spans
        self.sampling: SamplingSettings = message.sampling
        self.stopping: StoppingSettings = message.stopping
        self.token_times: TokenTimesWish | None = message.token_times
        self.tokens_may_wait = message.tokens_may_wait
        _check_spans(self.spans, self.prompt_length)

        self.computed_count = 0
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []
        self.cached_count: int | None = None
        self.passed_count = 0
        self.yield_count = 0
        self.held_up = False
        self.asked: set[str] = set()
        self.scheduled_at: float | None = None

        self._switch_length = switch_length
        self._stop_token_ids = frozenset(self.stopping.stop_token_ids)
        self.media_end = self.spans[-1].start + self.spans[-1].length if self.spans else 0
        self.unused: dict[str, int] = self.next_spans(0)
        if self.must_switch:
            self.switch()

    @property
    def age(self) -> tuple[float, int]:
        """Sorts sequences, the oldest first."""
        return (self.arrival, self.sequence_id)

    @property
    def output_count(self) -> int:
        """Number of generated tokens."""
        return len(self.token_ids) - self.prompt_length

    @property
    def masked_token_ids(self) -> list[int]:
        """Tokens that the sampler must not choose next: stop tokens before `min_token_count`."""
        if self.output_count < self.stopping.min_token_count:
            return self.stopping.stop_token_ids
        return []

    @property
    def must_switch(self) -> bool:
        """Whether it has passed the model's `switch_length` and is not computed accordingly."""
        return (
            self._switch_length is not None
            and not self.switched
            and len(self.token_ids) > self._switch_length
        )

    def switch(self) -> None:
        """Goes over to the computation of long sequences. What was computed does not hold any more."""
        self.switched = True
        self.computed_count = 0
        self.block_hashes = []

    def positions_of(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Rotary positions of tokens `start` to `start + count - 1`: int64 (axes, count)."""
        axes = self.positions.shape[0]
        end = start + count
        prompt = self.positions[:, start : min(end, self.prompt_length)]
        if end <= self.prompt_length:
            return prompt
        first = self.next_position + max(start - self.prompt_length, 0)
        generated = np.arange(first, self.next_position + end - self.prompt_length, dtype=np.int64)
        return np.concatenate([prompt, np.broadcast_to(generated, (axes, len(generated)))], axis=1)

    def ceiling(self, ready_row_count: Callable[[str], int], start: int | None = None) -> int:
        """How many leading tokens can be computed with the rows that are there.

        Args:
            ready_row_count: leading rows of an item that can be read, by key.
            start: tokens that need no rows any more; by default those computed.
        """
        done = self.computed_count if start is None else start
        if done >= self.media_end:
            return len(self.token_ids)
        for span in self.spans:
            if span.start + span.length <= done:
                continue
            ready = max(0, ready_row_count(span.key) - span.first_row)
            if ready < span.length:
                return max(done, span.start + (ready if span.splittable else 0))
        return len(self.token_ids)

    def clip(self, start: int, end: int) -> int:
        """Largest chunk end up to `end` that cuts no unsplittable span; may be `start`."""
        if start >= self.media_end:
            return end
        for span in self.spans:
            if not span.splittable and span.start < end < span.whole_end:
                return max(start, span.start)
        return end

    def item_rows_between(self, start: int, end: int) -> int:
        """How many of the tokens `start` to `end` (exclusive) are rows of items."""
        if start >= self.media_end:
            return 0
        overlaps = (min(end, span.start + span.length) - max(start, span.start) for span in self.spans)
        return sum(overlap for overlap in overlaps if overlap > 0)

    def keys_beyond(self, count: int) -> list[str]:
        """Keys of the items that have rows at or after token `count`, each once, in order."""
        if count >= self.media_end:
            return []
        return list(dict.fromkeys(span.key for span in self.spans if span.start + span.length > count))

    def next_spans(self, count: int) -> dict[str, int]:
        """The first span of each item that has rows at or after token `count`, by key."""
        found: dict[str, int] = {}
        if count >= self.media_end:
            return found
        for index, span in enumerate(self.spans):
            if span.start + span.length > count:
                found.setdefault(span.key, index)
        return found

    def finish_reason(self, max_model_len: int) -> FinishReason | None:
        """Why the sequence ends with its last token, or None where it goes on."""
        count = self.output_count
        if count >= self.stopping.max_token_count and self.sampling.rules.last_id is not None:
            # Its last token is the rule's, not the model's own end.
            return "length"
        if self.token_ids[-1] in self._stop_token_ids and count > self.stopping.min_token_count:
            return "stop"
        if count >= self.stopping.max_token_count or len(self.token_ids) >= max_model_len:
            return "length"
        return None


def _read_positions(message: AddSequence, prompt_length: int) -> npt.NDArray[np.int64]:
    flat = np.frombuffer(message.positions, dtype="<i4").astype(np.int64)
    if prompt_length == 0 or message.axes < 1 or len(flat) != message.axes * prompt_length:
        raise ValueError(f"{len(flat)} positions for {message.axes} axes of {prompt_length} tokens")
    return flat.reshape(message.axes, prompt_length)


def _check_spans(spans: list[SpanMessage], prompt_length: int) -> None:
    end = 0
    for span in spans:
        overlaps = span.start < end
        end = span.whole_end
        wrong = span.length < 1 or span.first_row < 0 or span.tail < 0 or (span.tail and span.splittable)
        if overlaps or wrong or end > prompt_length:
            raise ValueError(f"span {span.start}+{span.length} in a prompt of {prompt_length} tokens")
