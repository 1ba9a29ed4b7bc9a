"""Conversations about pictures: questions in a row, follow-ups that say "it", new pictures, small talk.

Knows nothing about tokens or pixels. A conversation is a pure function of its random generator.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from models.training import wordings
from models.training.comparisons import PAIR_ASKERS
from models.training.questions import ASKERS, Turn, beside_turn, colour_turn, shape_turn
from models.training.sayings import SIDES, sentence, yes_or_no
from models.training.scenes import COLOURS, Scene, Thing, number_scene, shapes_scene

_TRIES = 40
_NUMBER_SKILL_WEIGHTS = {"describe": 1, "colour": 1, "presence": 1, "number": 3}


@dataclass(frozen=True)
class Lesson:
    """How often each kind of conversation comes, how often a number, and how often each skill is asked for.

    `counts` weighs scenes of one to five shapes; None leaves that to the scenes' own taste.
    """

    kinds: tuple[int, int, int, int]
    numbers: float
    skills: tuple[tuple[str, int], ...]
    counts: tuple[int, ...] | None = None


BROAD = Lesson(
    kinds=(64, 22, 11, 3),
    numbers=0.27,
    skills=(("describe", 3), ("colour", 2), ("shape", 2), ("count", 4), ("position", 5), ("presence", 3)),
)
HARD = Lesson(
    kinds=(50, 42, 7, 1),
    numbers=0.1,
    skills=(("describe", 2), ("colour", 7), ("shape", 1), ("count", 6), ("position", 11), ("presence", 1)),
    counts=(3, 31, 38, 14, 14),
)


@dataclass(frozen=True)
class Exchange:
    """One question with the pictures sent along with it, before or after the text, and the right answer."""

    turn: Turn
    scenes: tuple[Scene, ...] = ()
    text_first: bool = False


@dataclass(frozen=True)
class Conversation:
    system: str | None
    exchanges: tuple[Exchange, ...]


def converse(rng: random.Random, length: int, lesson: Lesson = BROAD) -> Conversation:
    """A conversation of `length` exchanges, of any kind."""
    kind = rng.choices((_about_one, _about_two, _about_one_then_another, _without_pictures), lesson.kinds)[0]
    turns = kind(rng, lesson)
    exchanges = tuple(next(turns) for _ in range(length))
    return Conversation(rng.choice(wordings.SYSTEM) if rng.random() < 0.08 else None, exchanges)


def any_scene(rng: random.Random, lesson: Lesson = BROAD) -> Scene:
    if rng.random() < lesson.numbers:
        return number_scene(rng)
    return shapes_scene(rng, rng.choices((1, 2, 3, 4, 5), lesson.counts)[0] if lesson.counts else None)


def scene_pair(rng: random.Random) -> tuple[Scene, Scene]:
    """Two scenes worth comparing; often they share something."""
    roll = rng.random()
    if roll < 0.3:
        return number_scene(rng), number_scene(rng)
    if roll < 0.6:
        return _share_something(rng, shapes_scene(rng, 1), shapes_scene(rng, 1))
    return (any_scene(rng), any_scene(rng)) if roll < 0.75 else (shapes_scene(rng), shapes_scene(rng))


def ask_any(rng: random.Random, scene: Scene, lesson: Lesson = BROAD) -> Turn:
    """A question about the scene by itself, hard skills more often."""
    weights = dict(lesson.skills) if scene.number is None else _NUMBER_SKILL_WEIGHTS
    while True:
        skill = rng.choices(list(weights), list(weights.values()))[0]
        turn = ask(rng, skill, scene)
        if turn is not None:
            return turn


def ask(rng: random.Random, skill: str, scene: Scene) -> Turn | None:
    return first_turn(ASKERS[skill](rng, scene) for _ in range(_TRIES))


def compare(rng: random.Random, one: Scene, other: Scene) -> Turn:
    while True:
        turn = rng.choice(PAIR_ASKERS)(rng, one, other)
        if turn is not None:
            return turn


def follow_up(rng: random.Random, scene: Scene, previous: Turn) -> Turn | None:
    """A question that only makes sense after the previous one."""
    turn = first_turn(_try_follow_up(rng, scene, previous) for _ in range(4))
    return turn and replace(turn, skill="conversation")


def first_turn(turns: Iterator[Turn | None]) -> Turn | None:
    return next((turn for turn in turns if turn is not None), None)


def _try_follow_up(rng: random.Random, scene: Scene, previous: Turn) -> Turn | None:
    focus = previous.focus
    if focus is None:
        return None
    if previous.skill == "colour" and len(scene.things) > 1 and rng.random() < 0.5:
        return _what_about(rng, scene, previous)
    roll = rng.random()
    if roll < 0.3:
        return colour_turn(rng, "it", focus)
    if roll < 0.45:
        colour = focus.colour if rng.random() < 0.5 else rng.choice(COLOURS)
        question = wordings.put(rng, wordings.WHETHER_COLOUR, it="it", colour=colour)
        return Turn("conversation", question, yes_or_no(colour == focus.colour), focus)
    if not isinstance(focus, Thing):
        return None
    if roll < 0.65:
        return shape_turn(rng, "it", focus)
    if 2 <= len(scene.things) <= 3:
        return beside_turn(rng, scene, focus, rng.choice(SIDES), "it")
    return None


def _what_about(rng: random.Random, scene: Scene, previous: Turn) -> Turn | None:
    """The colour of another shape, asked in few words."""
    others = [
        thing
        for thing in scene.things
        if thing is not previous.focus and sum(thing.shape == other.shape for other in scene.things) == 1
    ]
    if not others:
        return None
    thing = rng.choice(others)
    question = wordings.put(rng, wordings.WHAT_ABOUT, it=f"the {thing.shape}")
    return Turn("colour", question, sentence(thing.colour), thing)


def _share_something(rng: random.Random, one: Scene, other: Scene) -> tuple[Scene, Scene]:
    from_one, thing = one.things[0], other.things[0]
    if rng.random() < 0.45:
        thing = replace(thing, shape=from_one.shape)
    hidden = {"light": "white", "middle": None, "dark": "black"}[other.background.shade]
    if rng.random() < 0.45 and from_one.colour != hidden:
        thing = replace(thing, colour=from_one.colour)
    return one, replace(other, things=(thing,))


def _small_talk(rng: random.Random) -> Turn:
    questions, answer = rng.choice(wordings.TALK)
    return Turn("talk", wordings.typed(rng, rng.choice(questions)), answer)


def _next_turn(rng: random.Random, scene: Scene, previous: Turn | None, lesson: Lesson) -> Turn:
    if previous is not None and rng.random() < 0.03:
        return _small_talk(rng)
    following = follow_up(rng, scene, previous) if previous is not None and rng.random() < 0.4 else None
    return following or ask_any(rng, scene, lesson)


def _about_one(rng: random.Random, lesson: Lesson) -> Iterator[Exchange]:
    scene = any_scene(rng, lesson)
    turn = _next_turn(rng, scene, None, lesson)
    yield Exchange(turn, (scene,), rng.random() < 0.25)
    while True:
        turn = _next_turn(rng, scene, turn, lesson)
        yield Exchange(turn)


def _about_two(rng: random.Random, lesson: Lesson) -> Iterator[Exchange]:
    del lesson
    one, other = scene_pair(rng)
    yield Exchange(compare(rng, one, other), (one, other), rng.random() < 0.25)
    while True:
        yield Exchange(compare(rng, one, other))


def _about_one_then_another(rng: random.Random, lesson: Lesson) -> Iterator[Exchange]:
    """A second picture comes later; what is asked then is about it, or about both."""
    one, other = scene_pair(rng)
    turn = _next_turn(rng, one, None, lesson)
    yield Exchange(turn, (one,), rng.random() < 0.25)
    for _ in range(rng.randrange(2)):
        turn = _next_turn(rng, one, turn, lesson)
        yield Exchange(turn)
    turn = ask_any(rng, other, lesson)
    yield Exchange(turn, (other,), rng.random() < 0.25)
    while True:
        turn = compare(rng, one, other) if rng.random() < 0.5 else _next_turn(rng, other, turn, lesson)
        yield Exchange(turn)


def _without_pictures(rng: random.Random, lesson: Lesson) -> Iterator[Exchange]:
    """Small talk, and questions about a picture that was never sent."""
    del lesson
    while True:
        if rng.random() < 0.7:
            yield Exchange(_small_talk(rng))
        else:
            yield Exchange(replace(ask_any(rng, any_scene(rng)), skill="talk", answer=wordings.NO_PICTURE))
