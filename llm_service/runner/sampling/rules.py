"""Which tokens may come next: rules of a family, and tokens that a request allows.

Knows the rules as values and what a sequence has generated. Does not know any family. Rules are
applied behind bias and penalties, in the order of transformers' `generate`; tokens that a request
names itself go before what a family suppresses.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from llm_service.engine.sequence import Sequence
from llm_service.runner.sampling.runs import SeenRuns
from llm_service.runner.transfer import to_device
from shared.families.token_rules import NO_RULES, TimestampRule

_OUT = float("-inf")

_MOST_INDICES = 256


class TokenMasks:
    """Applies rules to logits, and keeps index tensors of lists of tokens, and runs of sequences."""

    def __init__(self) -> None:
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}
        self._runs = SeenRuns()

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence."""
        self._runs.forget(sequence_id)

    def apply(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
        """Takes tokens that must not come next out of (sequences, vocabulary) logits, in place."""
        for row, sequence in enumerate(sequences):
            if has_rules(sequence):
                self._apply(logits[row], sequence)

    def _apply(self, logits: torch.Tensor, sequence: Sequence) -> None:
        rules, allowed = sequence.sampling.rules, sequence.sampling.allowed_token_ids
        place = sequence.output_count - len(rules.leading)
        if place < 0:
            self._keep(logits, rules.leading[sequence.output_count])
            return
        if allowed:
            self._keep(logits, tuple(allowed))
            return
        if rules.last_id is not None and sequence.output_count + 1 >= sequence.stopping.max_token_count:
            # Whatever else is masked: as an answer's least length may mask its end.
            logits.fill_(_OUT)
            logits[rules.last_id] = 0
            return
        if rules.run_length and (barred := self._runs.barred(sequence)):
            logits[to_device(barred, torch.int64, logits.device)] = _OUT
        if place == 0:
            self._drop(logits, rules.first_suppressed)
        self._drop(logits, rules.suppressed)
        if rules.timestamps is not None:
            output = sequence.token_ids[sequence.prompt_length + len(rules.leading) :]
            apply_times(logits, rules.timestamps, output)

    def _drop(self, logits: torch.Tensor, ids: tuple[int, ...]) -> None:
        if ids:
            logits[self._index(logits, ids)] = _OUT

    def _keep(self, logits: torch.Tensor, ids: tuple[int, ...]) -> None:
        index = self._index(logits, ids)
        kept = logits[index]
        logits.fill_(_OUT)
        logits[index] = kept

    def _index(self, logits: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
        """The tokens on the logits' device, those that the model has; kept for the next step."""
        if ids not in self._indices:
            if len(self._indices) >= _MOST_INDICES:
                self._indices.clear()
            known = [token_id for token_id in ids if 0 <= token_id < len(logits)]
            self._indices[ids] = to_device(known, torch.int64, logits.device)
        return self._indices[ids]


def has_rules(sequence: Sequence) -> bool:
    """Whether not every token may come next."""
    settings = sequence.sampling
    return bool(settings.allowed_token_ids) or settings.rules != NO_RULES


def is_led(sequence: Sequence) -> bool:
    """Whether the next token is one of those that the rules fill in."""
    return sequence.output_count < len(sequence.sampling.rules.leading)


def apply_times(logits: torch.Tensor, rule: TimestampRule, output: Rows[int]) -> None:
    """Takes out of (vocabulary,) logits what would break the order of times.

    Args:
        output: what was generated, without what rules filled in.
    """
    first = rule.first_id
    # The token in front of the times says that there are none.
    logits[first - 1] = _OUT
    last_is_time = bool(output) and output[-1] >= first
    pair_is_open = last_is_time and len(output) > 1 and output[-2] < first
    if last_is_time and pair_is_open:
        logits[: rule.end_id] = _OUT
    elif last_is_time:
        logits[first:] = _OUT
    latest = next((token for token in reversed(output) if token >= first), None)
    if latest is not None:
        logits[first : latest + (0 if pair_is_open else 1)] = _OUT
    if not output:
        logits[:first] = _OUT
        if rule.most_initial is not None:
            logits[first + rule.most_initial + 1 :] = _OUT
    if _times_prevail(logits, first):
        logits[:first] = _OUT


def _times_prevail(logits: torch.Tensor, first: int) -> bool:
    """Whether all times together are likelier than any other token."""
    probabilities = torch.log_softmax(logits.float(), dim=-1)
    return bool(probabilities[first:].logsumexp(dim=-1) > probabilities[:first].max())
