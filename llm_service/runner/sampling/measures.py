"""How sure the model is of what it writes, told to those who ask.

What Whisper's authors judge an answer by (openai/whisper, `decoding.py`): the probability that nobody
speaks, where the model's turn begins, and the log probabilities of the tokens among those that its
rules allow, whatever the temperature. Knows logits and settings. Does not judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import replace

import torch

from llm_service.engine.batch import SampledToken
from llm_service.engine.sequence import Sequence
from llm_service.runner.transfer import to_device


def silences(logits: torch.Tensor, sequences: Rows[Sequence]) -> dict[int, float]:
    """The probability that nobody speaks, by row, of measured sequences that begin.

    Args:
        logits: float32 (sequences, vocabulary), as the model gave them.
    """
    rows = {
        row: sequence.sampling.rules.silence_id
        for row, sequence in enumerate(sequences)
        if sequence.sampling.measured and sequence.output_count == 0
    }
    ids = {row: token for row, token in rows.items() if token is not None}
    if not ids:
        return {}
    return _chosen(torch.softmax(_rows(logits, list(ids)), dim=1), ids)


def measure(
    tokens: list[SampledToken],
    sequences: Rows[Sequence],
    logits: torch.Tensor,
    silence: Mapping[int, float],
) -> None:
    """Puts into the tokens of measured sequences how likely they were.

    Args:
        tokens: of all rows; those of measured sequences are replaced.
        logits: float32 (sequences, vocabulary), behind adjustments and rules.
        silence: see `silences`.
    """
    ids = {
        row: tokens[row].token_id
        for row, sequence in enumerate(sequences)
        if sequence.sampling.measured and tokens[row].failure is None
    }
    if not ids:
        return
    logprobs = _chosen(torch.log_softmax(_rows(logits, list(ids)), dim=1), ids)
    for row, logprob in logprobs.items():
        tokens[row] = replace(tokens[row], allowed_logprob=logprob, silence=silence.get(row))


def _rows(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return logits[to_device(rows, torch.int64, logits.device)]


def _chosen(values: torch.Tensor, ids: Mapping[int, int]) -> dict[int, float]:
    """By row, the value of its token; `values` holds these rows alone."""
    index = to_device(list(ids.values()), torch.int64, values.device)[:, None]
    found: list[float] = values.gather(1, index)[:, 0].tolist()
    return dict(zip(ids, found, strict=True))
