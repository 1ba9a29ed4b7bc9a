"""Short films: one shape that moves, or shapes that appear one after the other.

Knows what every moment shows, as scenes. Knows nothing about pixels, files or questions. A film is a pure
function of its random generator.
"""

import random
from dataclasses import dataclass, replace

from models.training.sayings import a, name, sentence
from models.training.scenes import Scene, Thing, shapes_scene

DIRECTIONS = ("left", "right", "up", "down")
FEWEST_MOMENTS, MOST_MOMENTS = 2, 4
"""A film's length in seconds; the model looks once a second."""

_SHORTEST_WAY = 0.34
_MOST_DRIFT = 0.04


@dataclass(frozen=True)
class Film:
    """What is seen, moment by moment.

    Attributes:
        scenes: one for every second.
        direction: where the one shape moves; None: shapes appear.
        order: the shapes, in the order of their appearance.
    """

    scenes: tuple[Scene, ...]
    direction: str | None
    order: tuple[Thing, ...]

    def at(self, seconds: float) -> Scene:
        """What is seen at a time between 0 and the film's end: a mover is between two moments."""
        moment = min(int(seconds), len(self.scenes) - 1)
        scene = self.scenes[moment]
        if self.direction is None or moment + 1 == len(self.scenes):
            return scene
        one, other, share = scene.things[0], self.scenes[moment + 1].things[0], seconds - moment
        between = replace(one, x=one.x + (other.x - one.x) * share, y=one.y + (other.y - one.y) * share)
        return replace(scene, things=(between,))

    def describe(self) -> str:
        """The canonical sentence."""
        if self.direction is not None:
            return sentence(f"{a(name(self.order[0]))} moves {self.direction}")
        first, *later = (a(name(thing)) for thing in self.order)
        return sentence(f"first {first}, " + ", ".join(f"then {one}" for one in later))


def make_film(rng: random.Random, moving: float) -> Film:
    """A film; `moving` is the chance that something moves in it."""
    return moving_film(rng) if rng.random() < moving else appearing_film(rng)


def moving_film(rng: random.Random) -> Film:
    """One shape on a straight way along an axis."""
    while True:
        scene = shapes_scene(rng, 1)
        thing = scene.things[0]
        direction = rng.choice(DIRECTIONS)
        across = direction in ("left", "right")
        half = 0.54 * thing.size * scene.scale / (scene.width if across else scene.height)
        way = rng.uniform(_SHORTEST_WAY, 0.8)
        if way > 1 - 2 * half:
            continue
        start = rng.uniform(half, 1 - half - way)
        ends = (start, start + way) if direction in ("right", "down") else (start + way, start)
        drift = rng.uniform(-_MOST_DRIFT, _MOST_DRIFT)
        count = rng.randint(FEWEST_MOMENTS, MOST_MOMENTS)
        shares = [moment / (count - 1) for moment in range(count)]
        moments = [_at(thing, across, ends[0] + (ends[1] - ends[0]) * s, drift * s) for s in shares]
        return Film(tuple(replace(scene, things=(moment,)) for moment in moments), direction, (thing,))


def appearing_film(rng: random.Random) -> Film:
    """Two or three shapes; each stays once it is there."""
    count = rng.randint(FEWEST_MOMENTS, MOST_MOMENTS)
    shown = 2 if count == FEWEST_MOMENTS or rng.random() < 0.65 else 3
    while True:
        scene = shapes_scene(rng, shown)
        if len({name(thing) for thing in scene.things}) == shown:
            break
    order = tuple(rng.sample(scene.things, shown))
    moments = sorted(rng.sample(range(count), shown))
    scenes = tuple(
        replace(scene, things=tuple(thing for thing, at in zip(order, moments, strict=True) if at <= moment))
        for moment in range(count)
    )
    return Film(scenes, None, order)


def _at(thing: Thing, across: bool, place: float, drift: float) -> Thing:
    if across:
        return replace(thing, x=place, y=min(max(thing.y + drift, 0.0), 1.0))
    return replace(thing, y=place, x=min(max(thing.x + drift, 0.0), 1.0))
