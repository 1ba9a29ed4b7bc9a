"""Changes to logits that hold for greedy and random choice alike: bias, masks, penalties.

Knows which tokens a sequence has seen. Does not choose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import torch

from llm_service.engine.messages import SamplingSettings
from llm_service.engine.sequence import Sequence
from llm_service.runner.transfer import to_device

_LEAST_FACTOR = 1e-6


@dataclass(slots=True)
class SeenTokens:
    """Token counts of one sequence, kept from step to step.

    Attributes:
        prompt: ids in the prompt.
        output: how often each id was generated.
        known_count: tokens of the sequence that are counted in.
    """

    prompt: frozenset[int]
    output: Counter[int] = field(default_factory=Counter)
    known_count: int = 0

    @classmethod
    def of(cls, sequence: Sequence) -> SeenTokens:
        prompt = frozenset(sequence.token_ids[: sequence.prompt_length])
        return cls(prompt, known_count=sequence.prompt_length)

    def catch_up(self, sequence: Sequence) -> None:
        """Counts the tokens that came since the last call."""
        self.output.update(sequence.token_ids[self.known_count :])
        self.known_count = len(sequence.token_ids)


@dataclass(slots=True)
class Cells:
    """Cells of the logits, (row, token id), and one number for each."""

    rows: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)

    def add(self, row: int, ids: Iterable[int], numbers: Iterable[float]) -> None:
        """Adds cells of one row."""
        before = len(self.ids)
        self.ids.extend(ids)
        self.numbers.extend(numbers)
        self.rows.extend([row] * (len(self.ids) - before))

    def index(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column indices of the cells on the logits' device."""
        index = to_device([self.rows, self.ids], torch.int64, logits.device)
        return index[0], index[1]

    def values(self, logits: torch.Tensor) -> torch.Tensor:
        """The numbers on the logits' device."""
        return to_device(self.numbers, logits.dtype, logits.device)


class Adjustments:
    """Applies bias, masks and penalties in place, in the order of transformers and vLLM.

    Bias first, then the repetition penalty on what prompt and output hold, then
    frequency and presence penalties on what the output holds, then the mask of
    stop tokens before the least count.
    """

    def __init__(self) -> None:
        self._seen: dict[int, SeenTokens] = {}

    def forget(self, sequence_id: int) -> None:
        """Drops a sequence's counts."""
        self._seen.pop(sequence_id, None)

    def apply(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
        """Changes (sequences, vocabulary) logits in place."""
        width = logits.shape[1]
        bias, repetition, subtract, masked = Cells(), Cells(), Cells(), Cells()
        for row, sequence in enumerate(sequences):
            settings = sequence.sampling
            if settings.logit_bias:
                known = {token: value for token, value in settings.logit_bias.items() if 0 <= token < width}
                bias.add(row, known, known.values())
            if has_penalty(settings):
                self._add_penalties(row, sequence, width, repetition, subtract)
            if stop_ids := sequence.masked_token_ids:
                masked.add(row, (token for token in stop_ids if 0 <= token < width), ())
        _apply(logits, bias, repetition, subtract, masked)

    def _add_penalties(
        self, row: int, sequence: Sequence, width: int, repetition: Cells, subtract: Cells
    ) -> None:
        settings = sequence.sampling
        seen = self._seen.get(sequence.sequence_id)
        if seen is None:
            seen = self._seen[sequence.sequence_id] = SeenTokens.of(sequence)
        seen.catch_up(sequence)
        if settings.repetition_penalty != 1.0:
            # A placeholder's token may lie behind those that can be generated.
            ids = {token_id for token_id in seen.prompt | seen.output.keys() if token_id < width}
            repetition.add(row, ids, [settings.repetition_penalty] * len(ids))
        if settings.frequency_penalty or settings.presence_penalty:
            amounts = (
                settings.presence_penalty + settings.frequency_penalty * count
                for count in seen.output.values()
            )
            subtract.add(row, seen.output, amounts)


def has_penalty(settings: SamplingSettings) -> bool:
    """Whether what a sequence holds changes its logits."""
    return bool(settings.repetition_penalty != 1.0 or settings.frequency_penalty or settings.presence_penalty)


def _apply(logits: torch.Tensor, bias: Cells, repetition: Cells, subtract: Cells, masked: Cells) -> None:
    """Cells of one kind are distinct, so each is read and written once."""
    if bias.ids:
        logits.index_put_(bias.index(logits), bias.values(logits), accumulate=True)
    if repetition.ids:
        # A penalty may be so near zero that it is zero in float32.
        index, factor = repetition.index(logits), repetition.values(logits).clamp_(min=_LEAST_FACTOR)
        seen = logits[index]
        logits[index] = torch.where(seen < 0, seen * factor, seen / factor)
    if subtract.ids:
        logits.index_put_(subtract.index(logits), -subtract.values(logits), accumulate=True)
    if masked.ids:
        logits[masked.index(logits)] = float("-inf")
