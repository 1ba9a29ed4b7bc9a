"""What can be asked about scenes, each question with its one right answer.

Every asker takes a random generator and a scene and returns a turn, or None where the scene has no
such question with exactly one right answer. Knows nothing about pixels, tokens or chat formats.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from models.training import wordings
from models.training.scenes import CLEARLY_APART, COLOURS, SHAPES, Number, Scene, Thing

COUNTED = ("zero", "one", "two", "three", "four", "five")
SIDES = ("left", "right", "above", "below")

_PLURALS = {shape: ("crosses" if shape == "cross" else shape + "s") for shape in SHAPES}


@dataclass(frozen=True)
class Turn:
    """A question and its right answer. `focus` is the one thing that "it" means afterwards, if any."""

    skill: str
    question: str
    answer: str
    focus: Thing | Number | None = None


Asker = Callable[[random.Random, Scene], Turn | None]
PairAsker = Callable[[random.Random, Scene, Scene], Turn | None]


# What a scene says


def describe(scene: Scene) -> str:
    """The canonical description: two or three shapes in order along a clear axis, more by their number."""
    if scene.number is not None:
        return f"The number {scene.number.text} in {scene.number.colour}."
    things = scene.things
    if len(things) == 1:
        return sentence(a(name(things[0])))
    if len({name(thing) for thing in things}) == 1:
        return sentence(f"{COUNTED[len(things)]} {plural(things[0])}")
    if len(things) == 2:
        return _describe_two(things[0], things[1])
    ordered = _along_an_axis(things) if len(things) == 3 else None
    if ordered is None:
        return sentence(f"{COUNTED[len(things)]} shapes")
    direction, row = ordered
    names = [a(name(thing)) for thing in row]
    return f"{direction}: {names[0]}, {names[1]} and {names[2]}."


def _describe_two(one: Thing, other: Thing) -> str:
    if abs(one.x - other.x) >= CLEARLY_APART:
        left, right = sorted((one, other), key=lambda thing: thing.x)
        return sentence(f"{a(name(left))} to the left of {a(name(right))}")
    upper, lower = sorted((one, other), key=lambda thing: thing.y)
    if lower.y - upper.y >= CLEARLY_APART:
        return sentence(f"{a(name(upper))} above {a(name(lower))}")
    return sentence("two shapes")


def _along_an_axis(things: tuple[Thing, ...]) -> tuple[str, list[Thing]] | None:
    row = sorted(things, key=lambda thing: thing.x)
    if all(right.x - left.x >= CLEARLY_APART for left, right in pairwise(row)):
        return "From left to right", row
    column = sorted(things, key=lambda thing: thing.y)
    if all(lower.y - upper.y >= CLEARLY_APART for upper, lower in pairwise(column)):
        return "From top to bottom", column
    return None


def borderline(scene: Scene) -> bool:
    """Whether some pair of a describable scene lies so near the limit that its order is a matter of taste."""
    limits = (CLEARLY_APART - 0.05, CLEARLY_APART + 0.02)
    gaps = [
        abs(distance)
        for i, one in enumerate(scene.things)
        for other in scene.things[:i]
        for distance in (one.x - other.x, one.y - other.y)
    ]
    return len(scene.things) in (2, 3) and any(limits[0] < gap < limits[1] for gap in gaps)


def name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def plural(thing: Thing) -> str:
    return f"{thing.colour} {_PLURALS[thing.shape]}"


def a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def yes_or_no(truth: bool) -> str:
    return "Yes." if truth else "No."


def beside(scene: Scene, thing: Thing, side: str) -> list[Thing] | None:
    """The things clearly on that side of a thing, or None where it is unclear for some thing."""
    distances = [(_distance(thing, other, side), other) for other in scene.things if other is not thing]
    if any(abs(distance) < CLEARLY_APART for distance, _ in distances):
        return None
    return [other for distance, other in distances if distance > 0]


def _distance(thing: Thing, other: Thing, side: str) -> float:
    """How far the other lies on that side of the thing."""
    across, down = other.x - thing.x, other.y - thing.y
    return {"left": -across, "right": across, "above": -down, "below": down}[side]


def reference(rng: random.Random, scene: Scene, thing: Thing) -> str | None:
    """A phrase that means this thing and no other: its shape, its colour, or both."""
    phrases = []
    if sum(other.shape == thing.shape for other in scene.things) == 1:
        phrases.append(f"the {thing.shape}")
    if sum(other.colour == thing.colour for other in scene.things) == 1:
        phrases.append(f"the {thing.colour} one")
    if sum(name(other) == name(thing) for other in scene.things) == 1:
        phrases.append(f"the {name(thing)}")
    return rng.choice(phrases) if phrases else None


# One picture


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
    return Turn("colour", question, sentence(focus.colour), focus)


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
        return _count_turn(rng, _PLURALS[shape], sum(thing.shape == shape for thing in scene.things))
    if roll < 0.85:
        same = sum(thing.colour == colour for thing in scene.things)
        return _count_turn(rng, f"{colour} {rng.choice(('shapes', 'objects'))}", same)
    same = sum(thing.shape == shape and thing.colour == colour for thing in scene.things)
    return _count_turn(rng, f"{colour} {_PLURALS[shape]}", same)


def _count_turn(rng: random.Random, kinds: str, count: int) -> Turn:
    return Turn("count", wordings.put(rng, wordings.COUNT, kinds=kinds), sentence(COUNTED[count]))


def ask_position(rng: random.Random, scene: Scene) -> Turn | None:
    if not 2 <= len(scene.things) <= 3:
        return None
    roll = rng.random()
    if roll < 0.5:
        return _ask_beside(rng, scene)
    return _ask_outermost(rng, scene) if roll < 0.8 else _ask_whether_beside(rng, scene)


def _ask_beside(rng: random.Random, scene: Scene) -> Turn | None:
    thing = rng.choice(scene.things)
    phrase = reference(rng, scene, thing)
    return None if phrase is None else beside_turn(rng, scene, thing, rng.choice(SIDES), phrase)


def beside_turn(rng: random.Random, scene: Scene, thing: Thing, side: str, phrase: str) -> Turn | None:
    """What is on that side of the thing, where that is one thing or nothing."""
    there = beside(scene, thing, side)
    if there is None or len(there) > 1 or (not there and rng.random() < 0.5):
        return None
    question = wordings.put(rng, wordings.BESIDE[side], it=phrase)
    if not there:
        return Turn("position", question, "Nothing.")
    return Turn("position", question, sentence(a(name(there[0]))), there[0])


def _ask_outermost(rng: random.Random, scene: Scene) -> Turn | None:
    side = rng.choice(SIDES)
    for thing in scene.things:
        if beside(scene, thing, side) == []:
            return Turn(
                "position", wordings.put(rng, wordings.OUTERMOST[side]), sentence(a(name(thing))), thing
            )
    return None


def _ask_whether_beside(rng: random.Random, scene: Scene) -> Turn | None:
    one, other = rng.sample(scene.things, 2)
    side = rng.choice(SIDES)
    phrases = reference(rng, scene, one), reference(rng, scene, other)
    distance = _distance(other, one, side)
    if phrases[0] is None or phrases[1] is None or abs(distance) < CLEARLY_APART:
        return None
    question = wordings.put(rng, wordings.WHETHER_BESIDE[side], it=phrases[0], other=phrases[1])
    return Turn("position", question, yes_or_no(distance > 0), one)


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


def sole(scene: Scene) -> Thing | Number | None:
    """What "it" means when the whole picture was the subject."""
    if scene.number is not None:
        return scene.number
    return scene.things[0] if len(scene.things) == 1 else None


# Two pictures


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


ASKERS: dict[str, Asker] = {
    "describe": ask_description,
    "colour": ask_colour,
    "shape": ask_shape,
    "count": ask_count,
    "position": ask_position,
    "presence": ask_presence,
    "number": ask_number,
}
PAIR_ASKERS: tuple[PairAsker, ...] = (
    ask_same,
    ask_which_has_more,
    ask_which_shows,
    ask_larger_number,
    ask_about_one,
)
