"""Chooses the next token of every sequence of a step.

Knows the order of things: raw log probabilities, adjustments, greedy choice,
random choice for those that want it. Does not know where logits come from.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from llm_service.engine.batch import SampledToken
from llm_service.engine.sequence import Sequence
from llm_service.runner.sampling.adjustments import Adjustments
from llm_service.runner.sampling.draws import Draws

NOT_FINITE = "the model's logits are not finite"


class Sampler:
    """Vectorised over the batch; greedy rows take an argmax and nothing else."""

    def __init__(self) -> None:
        self._adjustments = Adjustments()
        self._draws = Draws()

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence."""
        self._adjustments.forget(sequence_id)

    def sample(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> list[SampledToken]:
        """Chooses one token per row.

        Args:
            logits: float32 (sequences, vocabulary); overwritten.
            sequences: one per row, as known before the new token.

        Returns:
            One result per row, in order. A row without a finite greatest logit
            gives a failure; the other rows are not touched by it.
        """
        raw = _raw_rows(logits, sequences)
        self._adjustments.apply(logits, sequences)
        chosen = logits.argmax(dim=1, keepdim=True)
        finite = logits.gather(1, chosen).isfinite()[:, 0].tolist()
        ids: list[int] = chosen[:, 0].tolist()
        self._replace_random(logits, sequences, finite, ids)
        tokens = [
            SampledToken(sequence.sequence_id, token)
            if sound
            else SampledToken(sequence.sequence_id, -1, failure=NOT_FINITE)
            for sequence, token, sound in zip(sequences, ids, finite, strict=True)
        ]
        if raw is not None:
            _report(tokens, sequences, raw)
        return tokens

    def _replace_random(
        self, logits: torch.Tensor, sequences: Rows[Sequence], finite: list[bool], ids: list[int]
    ) -> None:
        """Draws for the rows with a temperature and writes over their greedy choice in `ids`."""
        rows = [
            row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0 and finite[row]
        ]
        if rows:
            part = logits[torch.tensor(rows, device=logits.device)]
            drawn = self._draws.draw(part, [sequences[row] for row in rows]).tolist()
            for row, token in zip(rows, drawn, strict=True):
                ids[row] = token


def _reported(sequences: Rows[Sequence]) -> list[int]:
    return [row for row, sequence in enumerate(sequences) if sequence.sampling.top_logprobs is not None]


def _raw_rows(logits: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor | None:
    """Log probabilities, before any adjustment, of the rows that report them."""
    rows = _reported(sequences)
    if not rows:
        return None
    return torch.log_softmax(logits[torch.tensor(rows, device=logits.device)], dim=1)


def _report(tokens: list[SampledToken], sequences: Rows[Sequence], raw: torch.Tensor) -> None:
    """Puts log probabilities into the tokens whose sequences ask for them."""
    rows = _reported(sequences)
    counts = [sequences[row].sampling.top_logprobs or 0 for row in rows]
    chosen = torch.tensor([max(tokens[row].token_id, 0) for row in rows], device=raw.device)
    logprobs = raw.gather(1, chosen[:, None])[:, 0].tolist()
    values, ids = (part.tolist() for part in raw.topk(min(max(counts), raw.shape[1])))
    for index, row in enumerate(rows):
        token = tokens[row]
        if token.failure is None:
            top = list(zip(ids[index][: counts[index]], values[index][: counts[index]], strict=True))
            tokens[row] = SampledToken(token.sequence_id, token.token_id, logprobs[index], top)
