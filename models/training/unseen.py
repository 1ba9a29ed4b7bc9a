"""A quick measure while training: answers to unseen conversations, judged token by token.

Kinder than generating, because every token sees the right ones before it. Knows nothing about training.
"""

import torch

from models.training import vocabulary
from models.training.examples import IGNORED, Batch, build_batch
from models.training.network import Learner, answer_logits, encode_pictures
from models.training.plan import SHAPE

_UNSEEN_SEED = 1_000_003
_UNSEEN_BATCHES = 5


def unseen_accuracy(learner: Learner) -> float:
    """The share of answers to unseen conversations whose every token would be chosen."""
    tokenizer = vocabulary.build_tokenizer()
    right = total = 0
    for number in range(_UNSEEN_BATCHES):
        batch = build_batch(tokenizer, SHAPE, _UNSEEN_SEED, number)
        hits, answers = _answers_right(learner, batch)
        right, total = right + hits, total + answers
    return right / total


@torch.no_grad()
def _answers_right(learner: Learner, batch: Batch) -> tuple[int, int]:
    """How many answers of a batch are right, token by token, and how many there are."""
    cells = encode_pictures(learner.model.model.visual, batch)
    chosen = answer_logits(learner.model, cells, batch).argmax(-1)
    asked = batch.labels != IGNORED
    wrong = asked & (chosen != batch.labels)
    starts = asked & ~torch.cat([torch.zeros_like(asked[:, :1]), asked[:, :-1]], dim=1)
    answer = starts.long().cumsum(1) - 1 + torch.arange(len(asked))[:, None] * asked.shape[1]
    return int(starts.sum()) - len(set(answer[wrong].tolist())), int(starts.sum())
