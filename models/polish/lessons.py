"""What a row of a batch teaches: segments side by side, of which none sees another.

A segment is a drill (one picture or pair and many talks about it), a question put before its picture, a
conversation, a film or a recording with one question. Knows how segments are chosen and laid out token by
token. Knows nothing about tensors.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from tokenizers import Tokenizer

from models.polish.drills import comparisons, drill_pair, drill_single, mentions
from models.polish.hints import Hints, hints
from models.polish.stock import Rows, Stock
from models.senses.lessons import Lesson, clip_rows, put_exchange
from models.senses.questions import ask_about_beeps, ask_about_film, ask_about_speech
from models.senses.speech import MOST_WORDS
from models.senses.spelling import Clip
from models.training import vocabulary
from models.training.conversations import Exchange
from models.training.examples import Sequence, lay_out, upper_bound
from models.training.pixels import MOST_CELLS
from models.training.questions import Turn
from models.training.scenes import Scene

_LONGEST = 256
"""Tokens of a segment, at the most."""
_LONGEST_TALK = 200
"""Of those, a conversation's."""
_SHORTEST = 70
"""With less room than this, a row is full."""
_TRIES = 8
_COMPARISONS = 5
_OTHER_WEIGHT = 3.0
"""Answers in a drill are many to a segment; those about films and recordings count more, each."""


@dataclass(frozen=True)
class Segment:
    """A sequence and what stands in it instead of words.

    Attributes:
        given: per token, the row of a tower that stands there; none for words.
        weight: how much each token of its answers counts.
    """

    sequence: Sequence
    given: dict[int, Rows] = field(default_factory=dict)
    weight: float = 1.0
    hints: Hints = field(default_factory=Hints)

    @property
    def teaches(self) -> bool:
        return any(self.sequence.answered) or bool(self.hints.where)


Maker = Callable[[Tokenizer, Stock, random.Random, int], Segment]
Makers = tuple[tuple[Maker, float], ...]
"""How segments are made, and how often each is tried; long ones find room less often."""


def fill_row(
    tokenizer: Tokenizer, stock: Stock, rng: random.Random, length: int, makers: Makers
) -> list[Segment]:
    """Segments of `length` tokens in all, at the most."""
    segments: list[Segment] = []
    room, tries = length, 0
    while room >= _SHORTEST and tries < _TRIES:
        make = rng.choices([maker for maker, _ in makers], [weight for _, weight in makers])[0]
        segment = make(tokenizer, stock, rng, min(room, _LONGEST))
        size = len(segment.sequence.tokens)
        if size > min(room, _LONGEST) or not segment.teaches:
            tries += 1
            continue
        segments.append(segment)
        room -= size
    return segments


def drill_sequence(
    tokenizer: Tokenizer,
    scenes: tuple[Scene, ...],
    talks: Iterable[tuple[Turn, ...]],
    length: int,
    mentioned: Iterable[Turn] = (),
) -> Sequence:
    """The pictures, what is mentioned, and the talks that fit into `length` tokens; none sees another."""
    sequence = Sequence(tokenizer)
    sequence.text(f"{vocabulary.START}user\n")
    for scene in scenes:
        sequence.picture(scene)
    position = sequence.next_position
    for turn in mentioned:
        sequence.begin_talk(position)
        sequence.question(turn)
    for turns in talks:
        exchanges = [Exchange(turn) for turn in turns]
        if len(sequence.tokens) + sum(upper_bound(tokenizer, one) for one in exchanges) > length:
            break
        sequence.begin_talk(position)
        sequence.question(turns[0])
        sequence.answer(turns[0].answer)
        for exchange in exchanges[1:]:
            sequence.exchange(exchange)
    return sequence


def _mentioned(tokenizer: Tokenizer, stock: Stock, rng: random.Random, room: int) -> Segment:
    """A picture whose things are mentioned, nothing else."""
    number = rng.randrange(stock.sizes.singles)
    scene = stock.items.single(number)
    sequence = drill_sequence(tokenizer, (scene,), (), room, mentions(rng, scene))
    return _pictured(tokenizer, sequence, stock.pictures("singles", number))


def _compared(tokenizer: Tokenizer, stock: Stock, rng: random.Random, room: int) -> Segment:
    """A picture and whether one thing is beside another, nothing else."""
    number = rng.randrange(stock.sizes.singles)
    scene = stock.items.single(number)
    talks = islice(comparisons(rng, scene), _COMPARISONS)
    sequence = drill_sequence(tokenizer, (scene,), talks, room)
    return _pictured(tokenizer, sequence, stock.pictures("singles", number))


def _single(tokenizer: Tokenizer, stock: Stock, rng: random.Random, room: int) -> Segment:
    number = rng.randrange(stock.sizes.singles)
    scene = stock.items.single(number)
    sequence = drill_sequence(tokenizer, (scene,), drill_single(rng, scene), room, mentions(rng, scene))
    return _pictured(tokenizer, sequence, stock.pictures("singles", number))


def _pair(tokenizer: Tokenizer, stock: Stock, rng: random.Random, room: int) -> Segment:
    number = rng.randrange(stock.sizes.pairs)
    pair = stock.items.pair(number)
    sequence = drill_sequence(tokenizer, pair, drill_pair(rng, *pair), room)
    return Segment(sequence, shown(sequence, stock.pictures("pairs", number)))


def _asked_first(tokenizer: Tokenizer, stock: Stock, rng: random.Random, room: int) -> Segment:
    """The first question of a drill, put before its picture or pictures."""
    if rng.random() < 0.4:
        kind, number = "pairs", rng.randrange(stock.sizes.pairs)
        one, other = stock.items.pair(number)
        scenes: tuple[Scene, ...] = (one, other)
        turns = next(drill_pair(rng, one, other))
    else:
        kind, number = "singles", rng.randrange(stock.sizes.singles)
        scene = stock.items.single(number)
        scenes = (scene,)
        turns = next(drill_single(rng, scene))
    sequence = Sequence(tokenizer)
    sequence.exchange(Exchange(turns[0], scenes, text_first=True))
    for turn in turns[1:]:
        sequence.exchange(Exchange(turn))
    return _pictured(tokenizer, sequence, stock.pictures(kind, number))


def _conversation(tokenizer: Tokenizer, stock: Stock, rng: random.Random, room: int) -> Segment:
    number = rng.randrange(stock.sizes.conversations)
    sequence = lay_out(tokenizer, stock.items.conversation(number), min(room, _LONGEST_TALK), rng)
    return Segment(sequence, shown(sequence, stock.pictures("conversations", number)))


def film_segment(tokenizer: Tokenizer, stock: Stock, rng: random.Random, room: int) -> Segment:
    number = rng.randrange(stock.sizes.films)
    film = stock.items.film(number)
    question = ask_about_film(rng, film)
    lesson = Lesson(question.skill, Sequence(tokenizer))
    put_exchange(lesson, rng, question, film)
    given = shown(lesson.sequence, stock.pictures("films", number))
    return Segment(lesson.sequence, given, _OTHER_WEIGHT)


def voice_segment(tokenizer: Tokenizer, stock: Stock, rng: random.Random, room: int) -> Segment:
    """What a voice says; half of the time two recordings in a row, as if they were one."""
    numbers = [rng.randrange(stock.sizes.voices)]
    if rng.random() < 0.5:
        numbers.append(rng.randrange(stock.sizes.voices))
    if sum(len(stock.utterances.words(number)) for number in numbers) > MOST_WORDS:
        numbers = numbers[:1]
    words = [word for number in numbers for word in stock.utterances.words(number)]
    question = ask_about_speech(rng, tuple(words))
    lesson = Lesson(question.skill, Sequence(tokenizer))
    clips = [_clip(stock, "voices", number) for number in numbers]
    put_exchange(lesson, rng, question, Clip(np.zeros(160 * 4 * sum(map(clip_rows, clips)), np.float32), ()))
    rows = [
        stock.recording("voices", number)[: clip_rows(clip)]
        for number, clip in zip(numbers, clips, strict=True)
    ]
    return _heard(lesson, np.concatenate(rows))


def beeps_segment(tokenizer: Tokenizer, stock: Stock, rng: random.Random, room: int) -> Segment:
    number = rng.randrange(stock.sizes.beeps)
    question = ask_about_beeps(rng, stock.items.beeps(number))
    lesson = Lesson(question.skill, Sequence(tokenizer))
    put_exchange(lesson, rng, question, _clip(stock, "beeps", number))
    return _heard(lesson, stock.recording("beeps", number))


def _clip(stock: Stock, kind: str, number: int) -> Clip:
    return Clip(np.zeros(stock.samples(kind, number), np.float32), ())


def _pictured(tokenizer: Tokenizer, sequence: Sequence, rows: Rows) -> Segment:
    return Segment(sequence, shown(sequence, rows), hints=hints(tokenizer, sequence))


def shown(sequence: Sequence, rows: Rows) -> dict[int, Rows]:
    return {
        place: rows[cell // MOST_CELLS, cell % MOST_CELLS]
        for place, cell in enumerate(sequence.cells)
        if cell >= 0
    }


def _heard(lesson: Lesson, rows: Rows) -> Segment:
    given = {place: rows[row] for place, (_, row) in lesson.heard.items()}
    return Segment(lesson.sequence, given, _OTHER_WEIGHT)


LOCATING: Makers = ((_mentioned, 1),)
COMPARING: Makers = ((_compared, 1),)
POLISHING: Makers = (
    (_single, 16),
    (_pair, 8),
    (_asked_first, 11),
    (_conversation, 5),
    (film_segment, 9),
    (voice_segment, 9),
    (beeps_segment, 4),
)
