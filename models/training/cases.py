"""Unseen cases by seed: for every skill, pictures and the questions about them with their right answers.

What the offline judge and the judge through the gateway both ask. Knows nothing about how it is asked.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from models.training.conversations import Exchange, any_scene, ask, ask_any, compare, follow_up, scene_pair
from models.training.questions import Turn
from models.training.scenes import Scene, number_scene, shapes_scene

SKILLS = ("describe", "colour", "shape", "count", "position", "presence", "number", "compare", "conversation")
"""`conversation` cases have several turns, all answered by the model itself; the others have one."""

_FOLLOW_UPS = 2


@dataclass(frozen=True)
class Case:
    """One conversation to hold. Every answer counts."""

    skill: str
    exchanges: tuple[Exchange, ...]


def cases(seed: int, count: int) -> Iterator[Case]:
    """`count` cases, the skills in turn."""
    for index in range(count):
        skill = SKILLS[index % len(SKILLS)]
        yield make_case(skill, random.Random(f"case/{seed}/{index}"))


def make_case(skill: str, rng: random.Random) -> Case:
    if skill == "compare":
        pair = scene_pair(rng)
        return Case(skill, (Exchange(compare(rng, *pair), pair, rng.random() < 0.25),))
    if skill == "conversation":
        return Case(skill, _conversation(rng))
    while True:
        scene = number_scene(rng) if skill == "number" else any_scene(rng)
        turn = ask(rng, skill, scene)
        if turn is not None:
            return Case(skill, (Exchange(turn, (scene,), rng.random() < 0.25),))


def _conversation(rng: random.Random) -> tuple[Exchange, ...]:
    """A question and follow-ups that need the turns before them."""
    while True:
        scene = shapes_scene(rng)
        turns = [ask_any(rng, scene)]
        while len(turns) <= _FOLLOW_UPS:
            turn = follow_up(rng, scene, turns[-1])
            if turn is None:
                break
            turns.append(turn)
        if len(turns) > _FOLLOW_UPS:
            return _as_exchanges(turns, scene)


def _as_exchanges(turns: list[Turn], scene: Scene) -> tuple[Exchange, ...]:
    first, *rest = turns
    return (Exchange(first, (scene,)), *(Exchange(turn) for turn in rest))
