"""Drills: many short talks about the same picture or pair, each as if it were the first.

What a person asks first is what must be right; a later question of a long talk may lean on the answers
before it. What comes often here is what is hardest. Knows nothing about tokens or pixels.
"""

import random
from collections.abc import Callable, Iterator

from models.training.comparisons import (
    ask_about_one,
    ask_larger_number,
    ask_same,
    ask_which_has_more,
    ask_which_shows,
)
from models.training.conversations import follow_up
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
from models.training.sayings import reference
from models.training.scenes import Scene, Thing

_FOLLOWED = 0.25
_BY_SHAPE = 0.6
_MOST_MENTIONS = 5
_TRIES = 20
_BEGINNINGS = ("Is", "Is", "is", "What is left of", "What is above", "Which shape is below", "What color is")
_ABOUT_ONE = (
    (ask_whether_beside, 9),
    (ask_beside, 6),
    (ask_outermost, 3),
    (ask_description, 8),
    (ask_colour, 4),
    (ask_shape, 1),
    (ask_count, 7),
    (ask_presence, 2),
    (ask_number, 1),
)
_POSITIONS = (ask_whether_beside, ask_beside, ask_outermost)
_ABOUT_TWO = (
    (ask_which_shows, 6),
    (ask_larger_number, 6),
    (ask_about_one, 5),
    (ask_which_has_more, 1),
    (ask_same, 1),
)


def drill_single(rng: random.Random, scene: Scene) -> Iterator[tuple[Turn, ...]]:
    """Talks without end about one picture."""
    while True:
        asker = _chosen(rng, _ABOUT_ONE)
        if asker in _POSITIONS and not 2 <= len(scene.things) <= 3:
            continue
        turn = asker(rng, scene)
        if turn is not None:
            yield _followed(rng, scene, turn)


def drill_pair(rng: random.Random, one: Scene, other: Scene) -> Iterator[tuple[Turn, ...]]:
    """Talks without end about two."""
    while True:
        turn = _chosen(rng, _ABOUT_TWO)(rng, one, other)
        if turn is not None:
            yield (turn,)


def comparisons(rng: random.Random, scene: Scene) -> Iterator[tuple[Turn, ...]]:
    """Whether one thing is beside another; none where no two things are apart, or have names."""
    for _ in range(_TRIES if 2 <= len(scene.things) <= 3 else 0):
        turn = ask_whether_beside(rng, scene, _by_shape)
        if turn is not None:
            yield (turn,)


def mentions(rng: random.Random, scene: Scene) -> list[Turn]:
    """Beginnings of questions that end with a mention."""
    turns = []
    for thing in rng.sample(scene.things, len(scene.things)):
        for phrase in sorted(filter(None, {_by_shape(rng, scene, thing), _by_shape(rng, scene, thing)})):
            turns.append(
                Turn("position", f"{rng.choice(_BEGINNINGS)} {phrase}", "", thing, ((phrase, thing),))
            )
    return turns[:_MOST_MENTIONS]


def _by_shape(rng: random.Random, scene: Scene, thing: Thing) -> str | None:
    """A phrase that means this thing, mostly its shape alone where that will do: what is hardest to find."""
    if rng.random() < _BY_SHAPE and sum(other.shape == thing.shape for other in scene.things) == 1:
        return f"the {thing.shape}"
    return reference(rng, scene, thing)


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
