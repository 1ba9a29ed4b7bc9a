"""Hints for the layers in between: where the things lie that a question mentions, and how far apart.

The answers alone have taught "Is A left of B?" too slowly: which layer failed, they do not say. So the last
word of every mention is to know where that thing lies, and the end of a question that compares is to know
how far the one lies from the other. Knows which token is to know what. Knows nothing about weights.
"""

from dataclasses import dataclass, field

from tokenizers import Tokenizer

from models.training.examples import Sequence
from models.training.questions import Turn

Place = tuple[int, float, float]
"""A token of a sequence, and two numbers, fractions of the picture: across and down."""


@dataclass
class Hints:
    """What tokens of a sequence are to know.

    Attributes:
        where: the centre of the thing that a mention ends with.
        apart: from the second mentioned thing to the first.
    """

    where: list[Place] = field(default_factory=list)
    apart: list[Place] = field(default_factory=list)


def hints(tokenizer: Tokenizer, sequence: Sequence) -> Hints:
    """A question in front of its picture can be compared with it only at its end."""
    found = Hints()
    first_cell = next((place for place, cell in enumerate(sequence.cells) if cell >= 0), len(sequence.cells))
    for start, turn in sequence.asked:
        if start > first_cell:
            ends = _ends(tokenizer, turn)
            found.where += [
                (start + end, thing.x, thing.y) for end, (_, thing) in zip(ends, turn.mentions, strict=True)
            ]
        if turn.compares:
            (_, one), (_, other) = turn.mentions
            found.apart.append((sequence.answered.index(True, start) - 1, one.x - other.x, one.y - other.y))
    return found


def _ends(tokenizer: Tokenizer, turn: Turn) -> list[int]:
    """The token with which each mention ends, counted from the question's first."""
    encoded, text, ends, behind = tokenizer.encode(turn.question), turn.question.lower(), [], 0
    for phrase, _ in turn.mentions:
        behind = text.index(phrase.lower(), behind) + len(phrase)
        ends.append(next(i for i, (first, last) in enumerate(encoded.offsets) if first < behind <= last))
    return ends
