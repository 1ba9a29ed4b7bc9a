"""Runs of tokens that must not come twice in an answer.

Knows what a sequence holds, and how often its runs were counted. The rule is transformers'
`no_repeat_ngram_size`. Does not know logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_service.engine.sequence import Sequence


@dataclass(slots=True)
class Runs:
    """The runs of one sequence, kept from step to step.

    Attributes:
        followers: by all tokens of a run but its last, which tokens came last.
        known_count: tokens of the sequence that are counted in.
    """

    known_count: int
    followers: dict[tuple[int, ...], list[int]] = field(default_factory=dict)


class SeenRuns:
    """The runs of all sequences whose rules have a `run_length`."""

    def __init__(self) -> None:
        self._runs: dict[int, Runs] = {}

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence. Unknown ids are no error."""
        self._runs.pop(sequence_id, None)

    def barred(self, sequence: Sequence) -> list[int]:
        """The tokens that would end a run which the answer holds already."""
        rules = sequence.sampling.rules
        width, first = rules.run_length - 1, sequence.prompt_length - rules.begun
        runs = self._runs.get(sequence.sequence_id)
        if runs is None:
            runs = self._runs[sequence.sequence_id] = Runs(first)
        tokens = sequence.token_ids
        for end in range(max(runs.known_count, first + width), len(tokens)):
            runs.followers.setdefault(tuple(tokens[end - width : end]), []).append(tokens[end])
        runs.known_count = len(tokens)
        if len(tokens) - first < width:
            return []
        return runs.followers.get(tuple(tokens[len(tokens) - width :]), [])
