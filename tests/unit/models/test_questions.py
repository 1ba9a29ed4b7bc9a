"""Every question has exactly one right answer, and the answer follows from the scene."""

import random
from collections import defaultdict

import pytest

from models.training.cases import SKILLS, cases
from models.training.conversations import any_scene, compare, converse, follow_up, scene_pair
from models.training.questions import ASKERS, Turn
from models.training.sayings import describe
from models.training.scenes import Background, Scene, Spoiling, Thing, shapes_scene


def scene_of(*things: Thing) -> Scene:
    return Scene(96, 96, Background("flat", "light", (0, 0, 0), 0), things, None, Spoiling(0, 0, None))


def thing(colour: str, shape: str, x: float, y: float) -> Thing:
    return Thing(shape, colour, x, y, 0.2, 0.0)


def plain(question: str) -> str:
    """The question without what loose typing changes."""
    words = question.lower().strip(".?! ").replace(", please", "").removeprefix("please ")
    for opening in ("hey, ", "ok, ", "so, ", "now, "):
        words = words.removeprefix(opening)
    return words


def test_no_question_about_a_picture_has_two_answers() -> None:
    for seed in range(150):
        rng = random.Random(seed)
        scene = any_scene(rng)
        answers: dict[str, set[str]] = defaultdict(set)
        for _ in range(120):
            turn = rng.choice(list(ASKERS.values()))(rng, scene)
            if turn is not None:
                answers[plain(turn.question)].add(turn.answer)
        assert all(len(given) == 1 for given in answers.values()), answers


def test_no_question_about_two_pictures_has_two_answers() -> None:
    for seed in range(150):
        rng = random.Random(seed)
        pair = scene_pair(rng)
        answers: dict[str, set[str]] = defaultdict(set)
        for _ in range(60):
            turn = compare(rng, *pair)
            answers[plain(turn.question)].add(turn.answer)
        assert all(len(given) == 1 for given in answers.values()), answers


def test_no_follow_up_has_two_answers() -> None:
    for seed in range(150):
        rng = random.Random(seed)
        scene = shapes_scene(rng)
        previous = Turn("shape", "", "", scene.things[0])
        answers: dict[str, set[str]] = defaultdict(set)
        for _ in range(60):
            turn = follow_up(rng, scene, previous)
            if turn is not None:
                answers[plain(turn.question)].add(turn.answer)
        assert all(len(given) == 1 for given in answers.values()), answers


@pytest.mark.parametrize(
    ("things", "said"),
    [
        ([thing("red", "circle", 0.5, 0.5)], "A red circle."),
        (
            [thing("orange", "star", 0.8, 0.5), thing("red", "ring", 0.2, 0.5)],
            "A red ring to the left of an orange star.",
        ),
        (
            [thing("blue", "cross", 0.5, 0.8), thing("red", "ring", 0.5, 0.2)],
            "A red ring above a blue cross.",
        ),
        ([thing("red", "cross", 0.2, 0.2), thing("red", "cross", 0.7, 0.7)], "Two red crosses."),
        (
            [
                thing("red", "ring", 0.5, 0.2),
                thing("blue", "star", 0.1, 0.5),
                thing("green", "cross", 0.9, 0.5),
            ],
            "From left to right: a blue star, a red ring and a green cross.",
        ),
    ],
)
def test_descriptions_are_canonical(things: list[Thing], said: str) -> None:
    assert describe(scene_of(*things)) == said


def test_conversations_and_cases_are_determined_by_their_seed() -> None:
    assert converse(random.Random(3), 9) == converse(random.Random(3), 9)
    assert list(cases(5, 30)) == list(cases(5, 30))
    assert list(cases(5, 30)) != list(cases(6, 30))


def test_cases_cover_all_skills_evenly() -> None:
    asked = [case.skill for case in cases(1, 2 * len(SKILLS))]
    assert sorted(asked) == sorted(SKILLS * 2)
