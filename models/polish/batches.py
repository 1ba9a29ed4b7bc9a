"""Batches: rows of segments as arrays of fixed shape.

Batch number n is a pure function of the seed and n. Knows nothing about weights.
"""

import random
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from models.polish.hints import Place
from models.polish.lessons import Makers, Segment, fill_row
from models.polish.network import TALKS
from models.polish.stock import Stock
from models.senses.ears import WIDTH


@dataclass(frozen=True)
class Shape:
    """Rows of a batch, tokens of each, and for how many answered tokens and hints there is room."""

    rows: int = 12
    length: int = 256
    answered: int = 1024
    hinted: int = 192


@dataclass
class Batch:
    """One step's tensors.

    `given` is what stands in place of a word where `is_given`; `talks` says, per token, to which talk of
    which segment it belongs (`TALKS` numbers a segment, of which the first is seen by the whole segment).
    `places` are the tokens, counted through all rows, behind which `labels` are expected, each of which
    counts by its weight. `where` and `apart` are what tokens in between are to know, at `where_places` and
    `apart_places`; those that are nobody's are at -1.

    Shapes: (rows, length) of `tokens`, `is_given` and `talks`, (rows, length, width) of `given`,
    (3, rows, length) of `positions`, (answered,) of `places`, `labels` and `weights`, (hinted,) of
    `where_places` and `apart_places`, (hinted, 2) of `where` and `apart`.
    """

    tokens: torch.Tensor
    given: torch.Tensor
    is_given: torch.Tensor
    positions: torch.Tensor
    talks: torch.Tensor
    places: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    where_places: torch.Tensor
    where: torch.Tensor
    apart_places: torch.Tensor
    apart: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def build_batch(
    tokenizer: Tokenizer, stock: Stock, shape: Shape, seed: str, number: int, makers: Makers
) -> Batch:
    """Batch `number` of those that follow from the seed."""
    rng = random.Random(f"{seed}/{number}")
    rows = [fill_row(tokenizer, stock, rng, shape.length, makers) for _ in range(shape.rows)]
    return to_tensors(rows, shape)


def to_tensors(rows: list[list[Segment]], shape: Shape) -> Batch:
    """The rows side by side; answers and hints beyond the room for them are dropped, the last rows' first."""
    arrays = _Arrays(shape)
    for index, segments in enumerate(rows):
        start = 0
        for number, segment in enumerate(segments):
            arrays.put(index, start, number, segment)
            start += len(segment.sequence.tokens)
    return arrays.batch()


class _Arrays:
    """A batch that is being filled."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        size = (shape.rows, shape.length)
        self._tokens = np.zeros(size, np.int64)
        self._given = np.zeros((*size, WIDTH), np.float32)
        self._is_given = np.zeros(size, np.bool_)
        self._positions = np.zeros((3, *size), np.int64)
        self._talks = np.full(size, -TALKS, np.int64)
        self._answers: list[tuple[int, int, float]] = []
        self._where: list[Place] = []
        self._apart: list[Place] = []

    def put(self, row: int, start: int, number: int, segment: Segment) -> None:
        sequence = segment.sequence
        there = slice(start, start + len(sequence.tokens))
        self._tokens[row, there] = sequence.tokens
        self._positions[:, row, there] = np.asarray(sequence.positions).T
        self._talks[row, there] = np.asarray(sequence.talks) + number * TALKS
        for place, given in segment.given.items():
            self._given[row, start + place] = given
            self._is_given[row, start + place] = True
        first = row * self._shape.length + start
        self._answers += [
            (first + place - 1, token, segment.weight)
            for place, (token, answered) in enumerate(zip(sequence.tokens, sequence.answered, strict=True))
            if answered
        ]
        self._where += [(first + place, across, down) for place, across, down in segment.hints.where]
        self._apart += [(first + place, across, down) for place, across, down in segment.hints.apart]

    def _hinted(self, hints: list[Place]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        hints = hints[: self._shape.hinted]
        hints += [(-1, 0.0, 0.0)] * (self._shape.hinted - len(hints))
        return np.asarray([hint[0] for hint in hints]), np.asarray([hint[1:] for hint in hints], np.float32)

    def batch(self) -> Batch:
        known = self._answers[: self._shape.answered]
        missing = self._shape.answered - len(known)
        places, labels, weights = zip(*known, *([(0, 0, 0.0)] * missing), strict=True)
        arrays: tuple[npt.NDArray[np.generic], ...] = (
            self._tokens,
            self._given,
            self._is_given,
            self._positions,
            self._talks,
            np.asarray(places),
            np.asarray(labels),
            np.asarray(weights, np.float32),
            *self._hinted(self._where),
            *self._hinted(self._apart),
        )
        return Batch(*(torch.from_numpy(array) for array in arrays))
