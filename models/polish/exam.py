"""A quick measure while training: unseen questions, judged token by token.

Kinder than generating, because every token sees the right ones before it. Knows nothing about training.
"""

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from models.polish.batches import Shape, to_tensors
from models.polish.lessons import Segment, beeps_segment, film_segment, shown, voice_segment
from models.polish.network import LanguageModel
from models.polish.stock import MOST_PICTURES, Stock, Towers
from models.senses.ears import WIDTH
from models.training.cases import cases
from models.training.examples import Sequence
from models.training.pixels import MOST_CELLS

_SHAPE = Shape(rows=8, length=320, answered=8 * 320, hinted=1)


@dataclass(frozen=True)
class Exam:
    """Questions by skill, laid out for the language model."""

    segments: list[tuple[str, Segment]]


def picture_exam(tokenizer: Tokenizer, towers: Towers, seed: int, count: int) -> Exam:
    """The cases of a seed that judges ask, too."""
    segments = []
    for case in cases(seed, count):
        sequence = Sequence(tokenizer)
        for exchange in case.exchanges:
            sequence.exchange(exchange)
        rows = np.zeros((1, MOST_PICTURES, MOST_CELLS, WIDTH), np.float16)
        towers.look([sequence.scenes], rows)
        segments.append((case.skill, Segment(sequence, shown(sequence, rows[0]))))
    return Exam(segments)


def senses_exam(tokenizer: Tokenizer, unseen: Stock, count: int) -> Exam:
    """Films and recordings of a stock that no lesson is made of."""
    rng = random.Random("exam")
    makers = {"voice": voice_segment, "beeps": beeps_segment, "film": film_segment}
    return Exam(
        [
            (kind, make(tokenizer, unseen, rng, _SHAPE.length))
            for kind, make in makers.items()
            for _ in range(count)
        ]
    )


@torch.no_grad()
def accuracy(model: LanguageModel, exam: Exam) -> dict[str, float]:
    """By skill, the share of answers whose every token is the likeliest."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for rows in _packed(exam):
        batch = to_tensors([[segment for _, segment in row] for row in rows], _SHAPE)
        chosen = model(batch.tensors())[0].argmax(-1)
        good = (chosen == batch.labels).tolist()
        place = 0
        for row in rows:
            for skill, segment in row:
                for size in _answers(segment):
                    asked[skill] += 1
                    right[skill] += all(good[place : place + size])
                    place += size
    return {skill: round(right[skill] / asked[skill], 3) for skill in asked}


def _answers(segment: Segment) -> list[int]:
    """How many tokens each answer has."""
    sizes, before = [], False
    for answered in segment.sequence.answered:
        if answered and not before:
            sizes.append(0)
        if answered:
            sizes[-1] += 1
        before = answered
    return sizes


def _packed(exam: Exam) -> list[list[list[tuple[str, Segment]]]]:
    """Batches of rows of segments, in order."""
    rows: list[list[tuple[str, Segment]]] = [[]]
    room = _SHAPE.length
    for one in exam.segments:
        size = len(one[1].sequence.tokens)
        assert size <= _SHAPE.length, f"{one[0]}: {size} tokens"
        if size > room:
            rows.append([])
            room = _SHAPE.length
        rows[-1].append(one)
        room -= size
    rows += [[]] * (-len(rows) % _SHAPE.rows)
    return [rows[start : start + _SHAPE.rows] for start in range(0, len(rows), _SHAPE.rows)]
