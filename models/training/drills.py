"""Drills: many short talks about the same picture or pair, each as if it were the first.

What a person asks first is what must be right; a later question of a long talk may lean on the answers
before it. What comes often here is what is hardest. Knows nothing about tokens or pixels.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from models.training.comparisons import (
    ask_about_one,
    ask_larger_number,
    ask_same,
    ask_which_has_more,
    ask_which_shows,
)
from models.training.conversations import Lesson as Taste
from models.training.conversations import any_scene, follow_up, scene_pair
from models.training.questions import (
    Turn,
    ask_beside,
    ask_colour,
    ask_count,
    ask_description,
    ask_number,
    ask_outermost,
    ask_presence,
    ask_shape,
    ask_whether_beside,
)
from models.training.scenes import Scene

PAIRS = 0.45
_FOLLOWED = 0.25
_TASTE = Taste(kinds=(1, 1, 0, 0), numbers=0.06, skills=(), counts=(4, 30, 38, 15, 13))
_ABOUT_ONE = (
    (ask_whether_beside, 9),
    (ask_beside, 5),
    (ask_outermost, 3),
    (ask_description, 3),
    (ask_colour, 4),
    (ask_shape, 1),
    (ask_count, 4),
    (ask_presence, 2),
    (ask_number, 1),
)
_POSITIONS = (ask_whether_beside, ask_beside, ask_outermost)
_ABOUT_TWO = (
    (ask_which_shows, 6),
    (ask_larger_number, 4),
    (ask_about_one, 3),
    (ask_which_has_more, 1),
    (ask_same, 1),
)


@dataclass(frozen=True)
class Drill:
    """One picture or two, and what is asked about them: talks without end, none of which knows another."""

    scenes: tuple[Scene, ...]
    talks: Iterator[tuple[Turn, ...]]


def drill(rng: random.Random) -> Drill:
    if rng.random() < PAIRS:
        pair = scene_pair(rng)
        return Drill(pair, _compare(rng, *pair))
    scene = any_scene(rng, _TASTE)
    return Drill((scene,), _ask(rng, scene))


def _ask(rng: random.Random, scene: Scene) -> Iterator[tuple[Turn, ...]]:
    while True:
        asker = _chosen(rng, _ABOUT_ONE)
        if asker in _POSITIONS and not 2 <= len(scene.things) <= 3:
            continue
        turn = asker(rng, scene)
        if turn is not None:
            yield _followed(rng, scene, turn)


def _compare(rng: random.Random, one: Scene, other: Scene) -> Iterator[tuple[Turn, ...]]:
    while True:
        turn = _chosen(rng, _ABOUT_TWO)(rng, one, other)
        if turn is not None:
            yield (turn,)


def _followed(rng: random.Random, scene: Scene, turn: Turn) -> tuple[Turn, ...]:
    """At times with a second and a third question that need the ones before."""
    turns = [turn]
    while len(turns) < 3 and rng.random() < (_FOLLOWED if len(turns) == 1 else 0.6):
        following = follow_up(rng, scene, turns[-1])
        if following is None:
            break
        turns.append(following)
    return tuple(turns)


def _chosen(
    rng: random.Random, askers: tuple[tuple[Callable[..., Turn | None], int], ...]
) -> Callable[..., Turn | None]:
    return rng.choices([asker for asker, _ in askers], [weight for _, weight in askers])[0]
