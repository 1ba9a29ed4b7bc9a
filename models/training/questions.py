"""What can be asked about one scene, each question with its one right answer.

Every asker takes a random generator and a scene and returns a turn, or None where the scene has no
such question with exactly one right answer. Knows nothing about pixels, tokens or chat formats.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from models.training import wordings
from models.training.sayings import (
    COUNTED,
    PLURALS,
    SIDES,
    a,
    beside,
    borderline,
    describe,
    distance,
    name,
    reference,
    sentence,
    sole,
    yes_or_no,
)
from models.training.scenes import CLEARLY_APART, COLOURS, SHAPES, Number, Scene, Thing


@dataclass(frozen=True)
class Turn:
    """A question and its right answer.

    Attributes:
        focus: the one thing that "it" means afterwards, if any.
        mentions: phrases of the question, in order, and the things that they mean.
        compares: whether the question is about where the first mentioned thing lies, seen from the second.
    """

    skill: str
    question: str
    answer: str
    focus: Thing | Number | None = None
    mentions: tuple[tuple[str, Thing], ...] = ()
    compares: bool = False


Asker = Callable[[random.Random, Scene], Turn | None]
Refer = Callable[[random.Random, Scene, Thing], str | None]


def ask_description(rng: random.Random, scene: Scene) -> Turn | None:
    if borderline(scene):
        return None
    return Turn("describe", wordings.put(rng, wordings.DESCRIBE), describe(scene), sole(scene))


def ask_colour(rng: random.Random, scene: Scene) -> Turn | None:
    if scene.number is not None:
        it = rng.choice(("the number", "it"))
        return colour_turn(rng, it, scene.number)
    thing = rng.choice(scene.things)
    if len(scene.things) == 1:
        return colour_turn(rng, rng.choice(("it", "the shape", f"the {thing.shape}")), thing)
    if sum(other.shape == thing.shape for other in scene.things) > 1:
        return None
    return colour_turn(rng, f"the {thing.shape}", thing)


def colour_turn(rng: random.Random, it: str, focus: Thing | Number) -> Turn:
    question = wordings.put(rng, wordings.COLOUR_OF, it=it)
    mentions = ((it, focus),) if isinstance(focus, Thing) and it != "it" else ()
    return Turn("colour", question, sentence(focus.colour), focus, mentions)


def ask_shape(rng: random.Random, scene: Scene) -> Turn | None:
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    if len(scene.things) == 1 and rng.random() < 0.5:
        return shape_turn(rng, rng.choice(("it", "this", "the object")), thing)
    if sum(other.colour == thing.colour for other in scene.things) > 1:
        return None
    question = wordings.put(rng, wordings.SHAPE_OF_COLOUR, colour=thing.colour)
    return Turn("shape", question, sentence(a(thing.shape)), thing)


def shape_turn(rng: random.Random, it: str, thing: Thing) -> Turn:
    return Turn("shape", wordings.put(rng, wordings.SHAPE_OF, it=it), sentence(a(thing.shape)), thing)


def ask_count(rng: random.Random, scene: Scene) -> Turn | None:
    if not scene.things:
        return None
    example = rng.choice(scene.things)
    colour = example.colour if rng.random() < 0.8 else rng.choice(COLOURS)
    shape = example.shape if rng.random() < 0.8 else rng.choice(SHAPES)
    roll = rng.random()
    if roll < 0.4:
        return _count_turn(rng, rng.choice(("shapes", "objects", "figures")), len(scene.things))
    if roll < 0.65:
        return _count_turn(rng, PLURALS[shape], sum(thing.shape == shape for thing in scene.things))
    if roll < 0.85:
        same = sum(thing.colour == colour for thing in scene.things)
        return _count_turn(rng, f"{colour} {rng.choice(('shapes', 'objects'))}", same)
    same = sum(thing.shape == shape and thing.colour == colour for thing in scene.things)
    return _count_turn(rng, f"{colour} {PLURALS[shape]}", same)


def _count_turn(rng: random.Random, kinds: str, count: int) -> Turn:
    return Turn("count", wordings.put(rng, wordings.COUNT, kinds=kinds), sentence(COUNTED[count]))


def ask_position(rng: random.Random, scene: Scene) -> Turn | None:
    if not 2 <= len(scene.things) <= 3:
        return None
    roll = rng.random()
    if roll < 0.5:
        return ask_beside(rng, scene)
    return ask_outermost(rng, scene) if roll < 0.8 else ask_whether_beside(rng, scene)


def ask_beside(rng: random.Random, scene: Scene) -> Turn | None:
    """What is on some side of some thing."""
    thing = rng.choice(scene.things)
    phrase = reference(rng, scene, thing)
    return None if phrase is None else beside_turn(rng, scene, thing, rng.choice(SIDES), phrase)


def beside_turn(rng: random.Random, scene: Scene, thing: Thing, side: str, phrase: str) -> Turn | None:
    """What is on that side of the thing, where that is one thing or nothing."""
    there = beside(scene, thing, side)
    if there is None or len(there) > 1 or (not there and rng.random() < 0.5):
        return None
    question = wordings.put(rng, wordings.BESIDE[side], it=phrase)
    mentions = () if phrase == "it" else ((phrase, thing),)
    if not there:
        return Turn("position", question, "Nothing.", None, mentions)
    return Turn("position", question, sentence(a(name(there[0]))), there[0], mentions)


def ask_outermost(rng: random.Random, scene: Scene) -> Turn | None:
    """What is the furthest on some side."""
    side = rng.choice(SIDES)
    for thing in scene.things:
        if beside(scene, thing, side) == []:
            return Turn(
                "position", wordings.put(rng, wordings.OUTERMOST[side]), sentence(a(name(thing))), thing
            )
    return None


def ask_whether_beside(rng: random.Random, scene: Scene, refer: Refer = reference) -> Turn | None:
    """Whether one thing is on some side of another; `refer` says what both are called."""
    one, other = rng.sample(scene.things, 2)
    side = rng.choice(SIDES)
    phrases = refer(rng, scene, one), refer(rng, scene, other)
    apart = distance(other, one, side)
    if phrases[0] is None or phrases[1] is None or abs(apart) < CLEARLY_APART:
        return None
    question = wordings.put(rng, wordings.WHETHER_BESIDE[side], it=phrases[0], other=phrases[1])
    mentions = ((phrases[0], one), (phrases[1], other))
    return Turn("position", question, yes_or_no(apart > 0), one, mentions, compares=True)


def ask_presence(rng: random.Random, scene: Scene) -> Turn | None:
    """Whether some kind is there; half of the time it is, and what is missing resembles what is there."""
    if scene.number is not None:
        return _ask_presence_of_number(rng, scene)
    colours, shapes = {t.colour for t in scene.things}, {t.shape for t in scene.things}
    thing, there = rng.choice(scene.things), rng.random() < 0.5
    form = rng.random()
    if form < 0.35:
        shape = thing.shape if there else rng.choice([s for s in SHAPES if s not in shapes])
        return _presence_turn(rng, a(shape), there)
    if form < 0.6:
        colour = thing.colour if there else rng.choice([c for c in COLOURS if c not in colours])
        return _presence_turn(rng, a(f"{colour} shape"), there)
    kind = name(thing) if there else _missing_kind(rng, scene)
    return _presence_turn(rng, a(kind), there)


def _ask_presence_of_number(rng: random.Random, scene: Scene) -> Turn:
    assert scene.number is not None
    if rng.random() < 0.5:
        return _presence_turn(rng, "a number", True)
    return _presence_turn(rng, a(rng.choice((*SHAPES, "shape"))), False)


def _missing_kind(rng: random.Random, scene: Scene) -> str:
    present = {name(thing) for thing in scene.things}
    near = [f"{t.colour} {shape}" for t in scene.things for shape in SHAPES]
    near += [f"{colour} {t.shape}" for t in scene.things for colour in COLOURS]
    return rng.choice([kind for kind in near if kind not in present])


def _presence_turn(rng: random.Random, a_kind: str, there: bool) -> Turn:
    return Turn("presence", wordings.put(rng, wordings.PRESENCE, a_kind=a_kind), yes_or_no(there))


def ask_number(rng: random.Random, scene: Scene) -> Turn | None:
    if scene.number is None:
        return None
    return Turn("number", wordings.put(rng, wordings.NUMBER), f"{scene.number.text}.", scene.number)


ASKERS: dict[str, Asker] = {
    "describe": ask_description,
    "colour": ask_colour,
    "shape": ask_shape,
    "count": ask_count,
    "position": ask_position,
    "presence": ask_presence,
    "number": ask_number,
}
