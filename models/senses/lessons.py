"""What a sequence teaches: a conversation about pictures as before, films, or recordings in a row.

One question to a film or a recording: of several, the later ones could be answered by copying. Knows how a
sequence is laid out token by token. Knows nothing about tensors.
"""

import random
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from models.senses import tokens
from models.senses.beeps import make_beeps, sound
from models.senses.films import Film, make_film
from models.senses.pool import Pool
from models.senses.questions import Question, ask_about_beeps, ask_about_film, ask_about_speech
from models.senses.recordings import record
from models.senses.spelling import Clip
from models.senses.thinker import STEPS_PER_SECOND
from models.training.conversations import BROAD, HARD, converse
from models.training.examples import Sequence, lay_out
from models.training.pixels import MOST_CELLS, grid_of
from models.training.scenes import Scene

_MOST_EXCHANGES = 14
_MARKS = 16
"""Tokens around an item, a question and its answer, at the most."""


@dataclass
class Lesson:
    """A sequence, what is seen and heard in it, and what it is about.

    Attributes:
        skill: of its first question; pictures are one skill.
        heard: per token, which row of the sequence's clips stands there as (clip, row); None elsewhere.
    """

    skill: str
    sequence: Sequence
    clips: list[Clip] = field(default_factory=list)
    heard: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def scenes(self) -> list[Scene]:
        return self.sequence.scenes


def picture_lesson(tokenizer: Tokenizer, rng: random.Random, length: int, hard: float) -> Lesson:
    """A conversation about pictures; `hard` is the chance that it dwells on what is hard."""
    kind = HARD if rng.random() < hard else BROAD
    sequence = lay_out(tokenizer, converse(rng, _MOST_EXCHANGES, kind), length, rng)
    return Lesson("pictures", sequence)


def film_lesson(tokenizer: Tokenizer, rng: random.Random, length: int, moving: float) -> Lesson:
    """Films while there is room."""
    lesson: Lesson | None = None
    while True:
        film = make_film(rng, moving)
        question = ask_about_film(rng, film)
        if lesson is None:
            lesson = Lesson(question.skill, Sequence(tokenizer))
        if len(lesson.sequence.tokens) + _film_cells(film) + _words(tokenizer, question) > length:
            if lesson.scenes:
                return lesson
            continue
        put_exchange(lesson, rng, question, film)


def sound_lesson(
    tokenizer: Tokenizer, rng: random.Random, length: int, pool: Pool, skill: str, most_frames: int
) -> Lesson:
    """Recordings while there is room, most of them of the one skill."""
    lesson = Lesson(skill, Sequence(tokenizer))
    while True:
        one = skill if rng.random() < 0.8 else rng.choice(("voice", "beeps"))
        clip, question = _recorded(rng, pool, one)
        rows = clip_rows(clip)
        if 4 * rows > most_frames:
            continue
        if len(lesson.sequence.tokens) + rows + _words(tokenizer, question) > length:
            if lesson.clips:
                return lesson
            continue
        if not lesson.clips:
            lesson.skill = question.skill
        put_exchange(lesson, rng, question, clip)


def clip_rows(clip: Clip) -> int:
    """Rows of a recording: whole ones."""
    return -(-len(clip.recording) // 160) // 4


def _recorded(rng: random.Random, pool: Pool, skill: str) -> tuple[Clip, Question]:
    if skill == "beeps":
        beeps = make_beeps(rng)
        symbols = tuple(f"{beep.pitch} beep" for beep in beeps.row)
        return Clip(record(sound(beeps), rng), symbols), ask_about_beeps(rng, beeps)
    number = rng.randrange(pool.size)
    words = pool.words(number)
    return Clip(record(pool.samples(number), rng), words), ask_about_speech(rng, words)


def put_exchange(lesson: Lesson, rng: random.Random, question: Question, item: Film | Clip) -> None:
    """Asks about an item, mostly behind it, at times in front of it."""
    sequence, text_first = lesson.sequence, rng.random() < 0.25
    sequence.text(f"{tokens.START}user\n")
    if text_first:
        sequence.text(question.question)
    if isinstance(item, Film):
        _film(sequence, item)
    else:
        _clip(lesson, item)
    if not text_first:
        sequence.text(question.question)
    sequence.text(f"{tokens.END}\n{tokens.START}assistant\n")
    sequence.text(f"{question.answer}{tokens.END}", answer=True)
    sequence.text("\n")


def _words(tokenizer: Tokenizer, question: Question) -> int:
    """Tokens of an exchange beside its item, at the most."""
    return len(tokenizer.encode(question.question).ids + tokenizer.encode(question.answer).ids) + _MARKS


def _film_cells(film: Film) -> int:
    rows, columns = grid_of(film.scenes[0].width, film.scenes[0].height)
    return rows * columns * len(film.scenes)


def _film(sequence: Sequence, film: Film) -> None:
    rows, columns = grid_of(film.scenes[0].width, film.scenes[0].height)
    ids = tokens.special_ids()
    _mark(sequence, ids[tokens.VISION_START])
    start = sequence.next_position
    for moment, scene in enumerate(film.scenes):
        for cell in range(rows * columns):
            place = (
                start + moment * STEPS_PER_SECOND,
                start + cell // columns,
                start + cell % columns,
            )
            sequence.push(ids[tokens.VIDEO], place, cell=len(sequence.scenes) * MOST_CELLS + cell)
        sequence.scenes.append(scene)
    longest = max((len(film.scenes) - 1) * STEPS_PER_SECOND, rows - 1, columns - 1)
    sequence.next_position = start + longest + 1
    _mark(sequence, ids[tokens.VISION_END])


def _clip(lesson: Lesson, clip: Clip) -> None:
    sequence, ids = lesson.sequence, tokens.special_ids()
    _mark(sequence, ids[tokens.AUDIO_START])
    for row in range(clip_rows(clip)):
        lesson.heard[len(sequence.tokens)] = (len(lesson.clips), row)
        _mark(sequence, ids[tokens.AUDIO])
    lesson.clips.append(clip)
    _mark(sequence, ids[tokens.AUDIO_END])


def _mark(sequence: Sequence, token: int) -> None:
    sequence.push(token, (sequence.next_position,) * 3)
    sequence.next_position += 1
