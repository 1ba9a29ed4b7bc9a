"""The engine over the real runner: greedy tokens equal those of transformers' generate()."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from llm_service.engine.messages import EngineStatus
from tests.checkpoints import build_tiny
from tests.integration.engine_case import Case
from tests.integration.engine_front import draw_picture

ModelType = Literal["qwen2_vl", "qwen2_5_vl", "llava"]

TEXTS = [
    "What is this?",
    "Name the colours, please.",
    "Say something long about nothing at all, in " + "very " * 40,
]


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "llava"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    model_type: ModelType = request.param
    yield Case(build_tiny(model_type, tmp_path_factory.mktemp(model_type)))


MIXED: list[tuple[str, tuple[int, ...]]] = [
    (text, pictures) for text in TEXTS for pictures in ((), (0,), (1,), (2, 3), (0, 0))
]


@pytest.mark.parametrize("pictures", [(), (0,), (1, 2)])
@pytest.mark.parametrize("text", TEXTS)
def test_one_alone(case: Case, text: str, pictures: tuple[int, ...]) -> None:
    local = case.engine()
    assert local.run([case.add(local, text, pictures)]) == [case.expected(text, pictures)]


Check = Callable[[EngineStatus], bool]


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({}, lambda status: status.preemption_count == 0),
        ({"max_num_batched_tokens": 32}, lambda status: status.step_count > 40),
        ({"enable_prefix_caching": False}, lambda status: status.prefix_hit_token_count == 0),
        ({"block_count": 80}, lambda status: status.preemption_count > 0),
        ({"max_num_seqs": 2}, lambda status: status.step_count > 100),
    ],
    ids=["at once", "small chunks", "no cache", "preempted", "two seats"],
)
def test_fifteen_at_once(case: Case, changes: dict[str, object], check: Check) -> None:
    local = case.engine(**changes)
    got = local.run([case.add(local, *request) for request in MIXED])
    assert got == [case.expected(*request) for request in MIXED]
    assert check(local.status), local.status
    assert local.status.used_block_count == 0


def test_the_same_again_is_served_from_the_cache(case: Case) -> None:
    local = case.engine()
    request = (TEXTS[0], (0,))
    local.run([case.add(local, *request)])
    local.front.close_all()
    local.front.asked.clear()
    second = case.add(local, *request)
    assert local.run([second]) == [case.expected(*request)]
    first = local.front.reports[second][0].first
    assert first is not None and first.cached_token_count > 0
    assert local.front.asked == [], "rows that the cache covers are not asked for"


def test_another_picture_is_no_hit(case: Case) -> None:
    local = case.engine()
    local.run([case.add(local, TEXTS[0], (0,))])
    assert local.run([case.add(local, TEXTS[0], (1,))]) == [case.expected(TEXTS[0], (1,))]
    assert case.expected(TEXTS[0], (0,)) != case.expected(TEXTS[0], (1,))


def test_a_follow_up_turn_hits_the_answer(case: Case) -> None:
    local = case.engine()
    prompt = case.prompt(TEXTS[0], (0,))
    key = f"{0:064x}"
    (answer,) = local.run([local.front.add(prompt, [key])])
    follow_up = [*prompt, *answer, *case.prompt(TEXTS[1], ())]
    second = local.front.add(follow_up, [key])
    expected = case.reference.generate(follow_up, [draw_picture(0)], 16, eos_token_id=None)
    assert local.run([second]) == [expected]
    first = local.front.reports[second][0].first
    assert first is not None and first.cached_token_count > len(prompt)


def test_rows_taken_away_are_asked_for_again(case: Case) -> None:
    local = case.engine(max_num_batched_tokens=32)
    requests = [(TEXTS[2], (0, 1)), (TEXTS[1], (2,))]
    ids = [case.add(local, *request) for request in requests]
    for _ in range(3):
        local.front.take(local.engine.take_messages())
        local.engine.step()
        local.front.close_all()
    assert local.run(ids) == [case.expected(*request) for request in requests]
