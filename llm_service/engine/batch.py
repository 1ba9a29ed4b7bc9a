"""The decision of one step, and what came of it, as plain values.

Knows what a runner is asked and what it answers. Does not know how either side
goes about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from llm_service.engine.messages import ArenaTensor
from llm_service.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A part of a sequence to be computed in one step.

    Attributes:
        sequence: read-only for the runner; its block table covers the part.
        start: first token; keys and values of all before it are in the blocks.
        count: tokens, at least 1.
        samples: the part ends with the last known token, so that its logits
            choose the next one.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """All that one step computes.

    Attributes:
        preempted: sequences whose blocks were taken since the last batch that had items;
            they start again at their first token, in this batch already or later.
    """

    items: list[ScheduledSequence] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)

    @property
    def token_count(self) -> int:
        """Tokens of all items."""
        return sum(item.count for item in self.items)

    @property
    def decodes_only(self) -> bool:
        """Every item is the last token of a sequence that has begun to answer."""
        return all(item.start >= item.sequence.prompt_length for item in self.items)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token that was chosen for one sequence.

    Attributes:
        logprob: in the model's raw distribution, when asked for.
        top: the likeliest tokens with their log probabilities, when asked for.
        allowed_logprob: see `TokenReport`.
        silence: see `TokenReport`.
        failure: why no token could be chosen (`token_id` is then -1); fails
            this sequence alone.
    """

    sequence_id: int
    token_id: int
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None
    failure: str | None = None
    allowed_logprob: float | None = None
    silence: float | None = None


class RowSource(Protocol):
    """Embedding rows that the runner may read during a step."""

    def tensors(self, key: str) -> list[ArenaTensor]:
        """Names, types and shapes of an item's tensors."""
        ...

    def rows(self, key: str, tensor_name: str, first: int, count: int) -> memoryview:
        """Bytes of rows `first` to `first + count - 1`, valid until the step ends."""
        ...


class Runner(Protocol):
    """Computes. The engine knows the model only as this."""

    def run(self, batch: ScheduledBatch, rows: RowSource) -> list[SampledToken]:
        """Computes keys and values of all parts; one token for each item that samples, in order."""
        ...

    def token_seconds(self, sequence: Sequence) -> list[float]:
        """When each generated token of a sequence is heard that has `token_times`, has ended and has its
        blocks still."""
        ...

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence (its random generator). Unknown ids are no error."""
        ...
