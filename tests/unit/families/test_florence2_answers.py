"""Florence-2's tasks: prompts and answers are read as transformers' processor reads them."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from shared.errors import InvalidRequestError
from shared.families.florence2_answers import ALONE, WITH_WORDS, read_answer, task_in, written_out
from tests.families.florence2 import LEFT_OUT, build, load_processor

TASKS = (*ALONE, *WITH_WORDS)
WORDS = ("cat", " a red\tdog", "it", "the image", "Über uns", "two\nlines", "\n", " ", "x<y", ">")
MARKS = ("<s>", "</s>", "<pad>", "<sep>", "<poly>", "</poly>", "<od>", "</od>", "<ground>", "<obj>")
ROUNDS = 1000


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_processor(build(tmp_path_factory.mktemp("florence2")))


def made_up(dice: random.Random) -> str:
    """An answer, or what a model that is beside itself might give."""
    parts = []
    for _ in range(dice.randint(0, 12)):
        parts.append(dice.choice(WORDS) if dice.random() < 0.6 else "")
        parts.append(dice.choice(MARKS) if dice.random() < 0.4 else "")
        count = dice.choice([0, 1, 2, 3, 4, 4, 4, 5, 8, 8, 9, 12])
        parts.append("".join(f"<loc_{dice.randint(0, 999)}>" for _ in range(count)))
        parts.append(dice.choice(["<sep>", "</poly>", ""]))
    return "".join(parts)


def test_answers(processor: Any) -> None:
    dice = random.Random(0)
    found = {task: 0 for task in TASKS}
    for _ in range(ROUNDS):
        answer, size = made_up(dice), (dice.randint(1, 5000), dice.randint(1, 5000))
        for task in TASKS:
            ours = read_answer(answer, task, size, LEFT_OUT)
            assert ours == processor.post_process_generation(answer, task=task, image_size=size), answer
            said = ours[task]
            found[task] += any(said.values()) if isinstance(said, dict) else bool(said)
    assert min(found.values()) > ROUNDS // 10, found


def test_an_answer_in_pixels() -> None:
    answer = "</s><s>car<loc_52><loc_332><loc_932><loc_774>wheel<loc_0><loc_0><loc_999><loc_999></s>"
    assert read_answer(answer, "<OD>", (640, 480)) == {
        "<OD>": {"bboxes": [[33, 159, 596, 371], [0, 0, 639, 479]], "labels": ["car", "wheel"]}
    }


@pytest.mark.parametrize("task", TASKS)
def test_words_without_places_are_read_once(task: str) -> None:
    """Looking at all that follows from each character would take minutes."""
    begun = time.perf_counter()
    said = read_answer("a word " * 30_000 + "<poly>", task, (640, 480))[task]
    assert time.perf_counter() - begun < 10
    assert isinstance(said, str) or not any(said.values())


@pytest.mark.parametrize("task", ALONE)
def test_tasks_that_are_the_whole_prompt(task: str, processor: Any) -> None:
    assert [written_out(task)] == processor._construct_prompts(task)
    assert task_in(task) == task
    with pytest.raises(InvalidRequestError, match="takes no words"):
        written_out(f"{task} please")


@pytest.mark.parametrize("task", WITH_WORDS)
@pytest.mark.parametrize("words", ["a green car", " {} ", "<loc_1><loc_2><loc_3><loc_4>", ""])
def test_tasks_with_words(task: str, words: str, processor: Any) -> None:
    assert [written_out(task + words)] == processor._construct_prompts(task + words)
    assert task_in(task + words) == task


def test_a_prompt_in_own_words_stays(processor: Any) -> None:
    assert [written_out("What is it?")] == processor._construct_prompts("What is it?") == ["What is it?"]
    assert task_in("What is it?") is None


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="<MORE_DETAILED_CAPTION>"):
        written_out(" <DANCE> ")
    assert written_out("<DANCE> with me") == "<DANCE> with me"
    with pytest.raises(InvalidRequestError, match="<CAPTION>"):
        read_answer("a cat", "<DANCE>", (10, 10))
