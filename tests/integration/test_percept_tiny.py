"""The bundled model: greedy tokens equal those of transformers' generate(), however they are scheduled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.engine_case import Case

TEXTS = [
    "How many shapes are there?",
    "Which colour is the circle, and what is to the left of it?",
    "Hello! What can you do?",
    "Compare them, please. " + "Take your time. " * 20,
]

MIXED: list[tuple[str, tuple[int, ...]]] = [
    (text, pictures) for text in TEXTS for pictures in ((), (0,), (1,), (2, 3))
]


@pytest.fixture(scope="module")
def case(repository: Path) -> Case:
    return Case(repository / "models" / "percept-tiny")


@pytest.mark.parametrize("pictures", [(), (0,), (1, 2)], ids=["text", "one picture", "two pictures"])
def test_one_alone(case: Case, pictures: tuple[int, ...]) -> None:
    for text in TEXTS:
        local = case.engine()
        assert local.run([case.add(local, text, pictures)]) == [case.expected(text, pictures)]


def test_sixteen_at_once(case: Case) -> None:
    local = case.engine(max_num_batched_tokens=64)
    assert local.run([case.add(local, *request) for request in MIXED]) == [
        case.expected(*request) for request in MIXED
    ]


def test_sixteen_in_a_small_pool(case: Case) -> None:
    local = case.engine(block_count=80)
    assert local.run([case.add(local, *request) for request in MIXED]) == [
        case.expected(*request) for request in MIXED
    ]
    assert local.status.preemption_count > 0 and local.status.used_block_count == 0
