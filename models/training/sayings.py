"""What a scene says: its canonical description, names for its things, and which things lie on which side.

Knows nothing about questions.
"""

import random
from itertools import pairwise

from models.training.scenes import CLEARLY_APART, SHAPES, Number, Scene, Thing

COUNTED = ("zero", "one", "two", "three", "four", "five")
SIDES = ("left", "right", "above", "below")
PLURALS = {shape: ("crosses" if shape == "cross" else shape + "s") for shape in SHAPES}


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
        abs(gap)
        for i, one in enumerate(scene.things)
        for other in scene.things[:i]
        for gap in (one.x - other.x, one.y - other.y)
    ]
    return len(scene.things) in (2, 3) and any(limits[0] < gap < limits[1] for gap in gaps)


def name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def plural(thing: Thing) -> str:
    return f"{thing.colour} {PLURALS[thing.shape]}"


def a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def yes_or_no(truth: bool) -> str:
    return "Yes." if truth else "No."


def beside(scene: Scene, thing: Thing, side: str) -> list[Thing] | None:
    """The things clearly on that side of a thing, or None where it is unclear for some thing."""
    distances = [(distance(thing, other, side), other) for other in scene.things if other is not thing]
    if any(abs(apart) < CLEARLY_APART for apart, _ in distances):
        return None
    return [other for apart, other in distances if apart > 0]


def distance(thing: Thing, other: Thing, side: str) -> float:
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


def sole(scene: Scene) -> Thing | Number | None:
    """What "it" means when the whole picture was the subject."""
    if scene.number is not None:
        return scene.number
    return scene.things[0] if len(scene.things) == 1 else None
