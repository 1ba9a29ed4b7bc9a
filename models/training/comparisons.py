"""What can be asked about two scenes at once, each question with its one right answer.

Knows nothing about pixels, tokens or chat formats.
"""

import random
from collections.abc import Callable

from models.training import wordings
from models.training.questions import Turn
from models.training.sayings import COUNTED, a, borderline, describe, name, sentence, sole, yes_or_no
from models.training.scenes import Scene

PairAsker = Callable[[random.Random, Scene, Scene], Turn | None]


def ask_same(rng: random.Random, one: Scene, other: Scene) -> Turn | None:
    if len(one.things) != 1 or len(other.things) != 1:
        return None
    if rng.random() < 0.5:
        same = one.things[0].shape == other.things[0].shape
        return Turn("compare", wordings.put(rng, wordings.SAME_SHAPE), yes_or_no(same))
    same = one.things[0].colour == other.things[0].colour
    return Turn("compare", wordings.put(rng, wordings.SAME_COLOUR), yes_or_no(same))


def ask_which_has_more(rng: random.Random, one: Scene, other: Scene) -> Turn | None:
    counts = len(one.things), len(other.things)
    if not all(counts) or counts[0] == counts[1]:
        return None
    if rng.random() < 0.5:
        return Turn(
            "compare", wordings.put(rng, wordings.MORE_SHAPES), first_or_second(counts[0] > counts[1])
        )
    return Turn("compare", wordings.put(rng, wordings.FEWER_SHAPES), first_or_second(counts[0] < counts[1]))


def ask_which_shows(rng: random.Random, one: Scene, other: Scene) -> Turn | None:
    kinds = _kinds_shown(one), _kinds_shown(other)
    apart = sorted(kinds[0] ^ kinds[1])
    if not apart:
        return None
    kind = rng.choice(apart)
    return Turn(
        "compare", wordings.put(rng, wordings.WHICH_SHOWS, a_kind=a(kind)), first_or_second(kind in kinds[0])
    )


def _kinds_shown(scene: Scene) -> set[str]:
    if scene.number is not None:
        return {"number"}
    return {kind for thing in scene.things for kind in (thing.shape, name(thing))}


def ask_larger_number(rng: random.Random, one: Scene, other: Scene) -> Turn | None:
    if one.number is None or other.number is None or one.number.text == other.number.text:
        return None
    larger, smaller = one.number, other.number
    if int(larger.text) < int(smaller.text):
        larger, smaller = smaller, larger
    asked, by_picture, by_number = (
        (larger, wordings.WHICH_IS_LARGER, wordings.LARGER)
        if rng.random() < 0.5
        else (smaller, wordings.WHICH_IS_SMALLER, wordings.SMALLER)
    )
    if rng.random() < 0.5:
        return Turn("compare", wordings.put(rng, by_picture), first_or_second(asked is one.number))
    return Turn("compare", wordings.put(rng, by_number), f"{asked.text}.")


def ask_about_one(rng: random.Random, one: Scene, other: Scene) -> Turn | None:
    """A question about the first or the second of two pictures."""
    index = rng.randrange(2)
    scene, which = (one, other)[index], wordings.FIRST_OR_SECOND[index]
    if scene.number is not None and rng.random() < 0.5:
        return Turn(
            "compare", wordings.put(rng, wordings.NUMBER_IN_ONE, which=which), f"{scene.number.text}."
        )
    roll = rng.random()
    if roll < 0.25 and scene.things:
        question = wordings.put(rng, wordings.COUNT_IN_ONE, which=which)
        return Turn("compare", question, sentence(COUNTED[len(scene.things)]))
    if roll < 0.5 and len(scene.things) == 1:
        it = rng.choice((scene.things[0].shape, "shape"))
        question = wordings.put(rng, wordings.COLOUR_IN_ONE, which=which, it=it)
        return Turn("compare", question, sentence(scene.things[0].colour), scene.things[0])
    if borderline(scene):
        return None
    return Turn(
        "compare", wordings.put(rng, wordings.DESCRIBE_ONE, which=which), describe(scene), sole(scene)
    )


def first_or_second(first: bool) -> str:
    return "The first." if first else "The second."


PAIR_ASKERS: tuple[PairAsker, ...] = (
    ask_same,
    ask_which_has_more,
    ask_which_shows,
    ask_larger_number,
    ask_about_one,
)
