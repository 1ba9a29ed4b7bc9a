"""A quick measure while training: first answers to unseen lessons, judged token by token.

Knows nothing about training.
"""

from collections import Counter

import torch
from tokenizers import Tokenizer

from models.senses.batches import Portions, SensesBatch, build_batch
from models.senses.network import SensesLearner
from models.senses.pool import Pool
from models.training.examples import IGNORED

_UNSEEN_SEED = "unseen"


@torch.no_grad()
def unseen_accuracy(
    learner: SensesLearner, tokenizer: Tokenizer, portions: Portions, pool: Pool, batches: int
) -> dict[str, float]:
    """By skill, the share of sequences whose first answer has every token right."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for number in range(batches):
        batch = build_batch(tokenizer, portions, pool, _UNSEEN_SEED, number)
        logits, _ = learner(batch.seen.tensors(), batch.spectra, batch.frame_counts)
        for skill, good in zip(batch.skills, _first_answers(logits, batch), strict=True):
            asked[skill] += 1
            right[skill] += good
    return {skill: round(right[skill] / asked[skill], 3) for skill in sorted(asked)}


def _first_answers(logits: torch.Tensor, batch: SensesBatch) -> list[bool]:
    labels = batch.seen.labels
    asked = labels != IGNORED
    begun = asked.cumsum(1) > 0
    first = asked & (((~asked & begun).cumsum(1)) == 0)
    wrong = first & (logits.argmax(-1) != labels)
    return (~wrong.any(1)).tolist()
