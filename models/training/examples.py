"""Training batches: conversations and their pictures as arrays of fixed shape.

Batch number n is a pure function of the seed and n, so that training can stop and continue anywhere.
Knows nothing about weights.
"""

import random
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from models.training import vocabulary
from models.training.conversations import BROAD, Conversation, Exchange, Lesson, converse
from models.training.drawing import draw
from models.training.pixels import (
    MERGE,
    MOST_CELLS,
    PATCH,
    cell_labels,
    grid_of,
    patch_coordinates,
    patches,
)
from models.training.questions import Turn
from models.training.scenes import Scene

IGNORED = -100
_PATCHES = MOST_CELLS * MERGE * MERGE
_LONGEST_GAP = 900
_MOST_EXCHANGES = 14


@dataclass
class Batch:
    """One step's tensors. R sequences of T tokens with P pictures of at most MOST_CELLS cells.

    `rows` says, per token, which cell of all pictures stands there, or -1 for text; `visible` marks the
    patches that exist; `labels` holds the token expected next, IGNORED outside answers.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    patches: torch.Tensor
    coordinates: torch.Tensor
    visible: torch.Tensor
    kind: torch.Tensor
    colour: torch.Tensor
    centre: torch.Tensor
    place: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Shape:
    """How large a batch is: tokens per sequence, sequences, pictures."""

    length: int
    sequences: int
    pictures: int


class Sequence:
    """Token by token, one conversation as the model reads it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._image_token: int = vocabulary.special_ids(tokenizer)[vocabulary.IMAGE]
        self.tokens: list[int] = []
        self.answered: list[bool] = []
        self.cells: list[int] = []
        self.positions: list[tuple[int, int, int]] = []
        self.scenes: list[Scene] = []
        self.talks: list[int] = []
        self.asked: list[tuple[int, Turn]] = []
        self.next_position = 0
        self._talk = 0

    def text(self, text: str, answer: bool = False) -> None:
        for token in self._tokenizer.encode(text).ids:
            self.push(token, (self.next_position,) * 3, answer=answer)
            self.next_position += 1

    def picture(self, scene: Scene) -> None:
        rows, columns = grid_of(scene.width, scene.height)
        self.text(vocabulary.VISION_START)
        start = self.next_position
        for cell in range(rows * columns):
            place = (start, start + cell // columns, start + cell % columns)
            self.push(self._image_token, place, cell=len(self.scenes) * MOST_CELLS + cell)
        self.next_position = start + max(rows, columns)
        self.scenes.append(scene)
        self.text(vocabulary.VISION_END)

    def exchange(self, exchange: Exchange) -> None:
        self.text(f"{vocabulary.START}user\n")
        if exchange.text_first:
            self.question(exchange.turn)
        for scene in exchange.scenes:
            self.picture(scene)
        if not exchange.text_first:
            self.question(exchange.turn)
        self.answer(exchange.turn.answer)

    def question(self, turn: Turn) -> None:
        self.asked.append((len(self.tokens), turn))
        self.text(turn.question)

    def answer(self, answer: str) -> None:
        """The end of a question's message, and the answer's."""
        self.text(f"{vocabulary.END}\n{vocabulary.START}assistant\n")
        self.text(f"{answer}{vocabulary.END}", answer=True)
        self.text("\n")

    def begin_talk(self, position: int) -> None:
        """What follows sees nothing of the talks before it; it begins at this position."""
        self._talk += 1
        self.next_position = position

    def push(self, token: int, position: tuple[int, int, int], answer: bool = False, cell: int = -1) -> None:
        """One token; `cell` is the row that stands there, of all pictures' in this sequence."""
        self.tokens.append(token)
        self.answered.append(answer)
        self.cells.append(cell)
        self.positions.append(position)
        self.talks.append(self._talk)


def lay_out(tokenizer: Tokenizer, conversation: Conversation, length: int, rng: random.Random) -> Sequence:
    """The exchanges that fit into `length` tokens; at times positions leap ahead, as in a longer talk."""
    sequence = Sequence(tokenizer)
    if conversation.system is not None:
        sequence.text(f"{vocabulary.START}system\n{conversation.system}{vocabulary.END}\n")
    leaping = rng.random() < 0.35
    for exchange in conversation.exchanges:
        if len(sequence.tokens) + upper_bound(tokenizer, exchange) > length:
            break
        sequence.exchange(exchange)
        if leaping and rng.random() < 0.3:
            sequence.next_position += int(_LONGEST_GAP * rng.random() ** 2)
    return sequence


def upper_bound(tokenizer: Tokenizer, exchange: Exchange) -> int:
    """Tokens of an exchange, at the most."""
    words = tokenizer.encode(exchange.turn.question + exchange.turn.answer).ids
    return len(words) + 11 + sum(2 + MOST_CELLS for _ in exchange.scenes)


def build_batch(tokenizer: Tokenizer, shape: Shape, seed: int, number: int, lesson: Lesson = BROAD) -> Batch:
    """Batch `number`: conversations until the pictures run out, then conversations dropped for room."""
    rng = random.Random(f"{seed}/{number}")
    sequences: list[Sequence] = []
    pictures = 0
    while len(sequences) < shape.sequences:
        sequence = lay_out(tokenizer, converse(rng, _MOST_EXCHANGES, lesson), shape.length, rng)
        if pictures + len(sequence.scenes) <= shape.pictures:
            sequences.append(sequence)
            pictures += len(sequence.scenes)
    return to_tensors(sequences, shape)


def to_tensors(sequences: list[Sequence], shape: Shape) -> Batch:
    tokens = np.zeros((shape.sequences, shape.length), dtype=np.int64)
    labels = np.full_like(tokens, IGNORED)
    rows = np.full_like(tokens, -1)
    positions = np.zeros((3, shape.sequences, shape.length), dtype=np.int64)
    first_picture = 0
    for index, sequence in enumerate(sequences):
        size = len(sequence.tokens)
        tokens[index, :size] = sequence.tokens
        expected = np.where(sequence.answered, sequence.tokens, IGNORED)
        labels[index, : size - 1] = expected[1:]
        cells = np.asarray(sequence.cells)
        rows[index, :size] = np.where(cells >= 0, cells + first_picture * MOST_CELLS, -1)
        positions[:, index, :size] = np.asarray(sequence.positions).T
        first_picture += len(sequence.scenes)
    pictures = _Pictures(shape.pictures)
    for index, scene in enumerate(scene for sequence in sequences for scene in sequence.scenes):
        pictures.put(index, scene)
    texts = (torch.from_numpy(array) for array in (tokens, labels, positions, rows))
    return Batch(*texts, *pictures.tensors())


class _Pictures:
    """The pictures' half of a batch, padded to MOST_CELLS cells each."""

    def __init__(self, count: int) -> None:
        self.patches = np.zeros((count, _PATCHES, 3 * PATCH * PATCH), dtype=np.uint8)
        self.coordinates = np.zeros((count, _PATCHES, 2), dtype=np.int64)
        self.visible = np.zeros((count, _PATCHES), dtype=np.bool_)
        self.visible[:, 0] = True
        self.kind = np.full((count, MOST_CELLS), IGNORED, dtype=np.int64)
        self.colour = np.full((count, MOST_CELLS), IGNORED, dtype=np.int64)
        self.centre = np.zeros((count, MOST_CELLS), dtype=np.float32)
        self.place = np.zeros((count, MOST_CELLS, 2), dtype=np.float32)

    def put(self, index: int, scene: Scene) -> None:
        flat = patches(draw(scene))
        known = cell_labels(scene)
        seen, cells = len(flat), len(known.kind)
        self.patches[index, :seen] = flat
        self.coordinates[index, :seen] = patch_coordinates(*grid_of(scene.width, scene.height))
        self.visible[index, :seen] = True
        self.kind[index, :cells] = known.kind
        self.colour[index, :cells] = known.colour
        self.centre[index, :cells] = known.centre
        self.place[index, :cells] = known.place

    def tensors(self) -> tuple[torch.Tensor, ...]:
        arrays: tuple[npt.NDArray[np.generic], ...] = (
            self.patches,
            self.coordinates,
            self.visible,
            self.kind,
            self.colour,
            self.centre,
            self.place,
        )
        return tuple(torch.from_numpy(array) for array in arrays)
