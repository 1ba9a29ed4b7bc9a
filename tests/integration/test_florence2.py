"""The engine over Florence-2: tokens are those of transformers' own `generate`, its rules and all.

A tiny checkpoint: tasks about several pictures, alone and together, in steps that hold one front at a
time, from the cache and out of blocks; fronts of one picture and one task computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_service.engine.messages import EngineStatus, SamplingSettings, SequenceRefused
from llm_service.runner.load import load_runner
from llm_service.runner.model_runner import ModelRunner
from shared.families.florence2_layout import ROW_MULTIPLE
from tests.asking import picture
from tests.families.florence2 import ROW_COUNT, RUN_LENGTH, build, load_processor
from tests.integration.engine_case import LocalEngine
from tests.integration.engine_front import settings_for
from tests.laying_out import Layouter

COUNT = 24
BEGUN = 2
"""Tokens of the decoder's prompt: its start, and the token that every answer begins with."""

SIZES = ((112, 84), (64, 64), (60, 140), (224, 56))


@dataclass(frozen=True)
class Asked:
    """A picture by its number, and a prompt."""

    shown: int
    prompt: str


ASKED = [
    Asked(0, "<CAPTION>"),
    Asked(1, "<OD>"),
    Asked(0, "<OD>"),
    Asked(2, "<REGION_TO_CATEGORY><loc_52><loc_332><loc_932><loc_774>"),
    Asked(3, "<CAPTION_TO_PHRASE_GROUNDING>a red circle and the image of a square"),
    Asked(1, "What is in the picture? " * 12 + "Say it."),
    Asked(2, "<OCR_WITH_REGION>"),
    Asked(3, "<MORE_DETAILED_CAPTION>"),
]


class World:
    """One checkpoint, its runner, and the whole model in transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import Florence2ForConditionalGeneration

        self.folder = folder
        self.runner: ModelRunner = load_runner(settings_for(folder), lambda fraction, text: None)
        self.front = Layouter(folder)
        self.layout: Any = self.front.layout
        self.processor: Any = load_processor(folder)
        self.model: Any = Florence2ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.end: int = self.model.generation_config.eos_token_id
        self._answers: dict[tuple[Asked, int], list[int]] = {}

    def engine(self, **changes: object) -> LocalEngine:
        local = LocalEngine(self.folder, self.runner, **changes)
        for number, size in enumerate(SIZES):
            local.front.encode(key(number), picture(number, size))
        return local

    def add(self, local: LocalEngine, asked: Asked, count: int = COUNT, **sampling: Any) -> int:
        ids = self.front.token_ids(asked.prompt, [])
        return local.front.add(
            ids,
            [key(asked.shown)],
            max_token_count=count,
            stop_token_ids=[self.end],
            sampling=SamplingSettings(rules=self.layout.rules(ids), **sampling),
        )

    def expected(self, asked: Asked, count: int = COUNT) -> list[int]:
        """The answer behind the two tokens that every one begins with."""
        if (asked, count) not in self._answers:
            shown = picture(asked.shown, SIZES[asked.shown])
            inputs = self.processor(text=[asked.prompt], images=[shown], return_tensors="pt")
            with torch.no_grad():
                # The checkpoint's own configuration searches three beams.
                output = self.model.generate(
                    **inputs,
                    max_new_tokens=count + 1,
                    do_sample=False,
                    num_beams=1,
                    early_stopping=False,
                )
            self._answers[asked, count] = output[0, BEGUN:].tolist()
        return self._answers[asked, count]


def key(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(build(tmp_path_factory.mktemp("florence2")))


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: f"{asked.shown} {asked.prompt[:12]}")
def test_one_alone(world: World, asked: Asked) -> None:
    local = world.engine()
    assert local.run([world.add(local, asked)]) == [world.expected(asked)]


def test_answers_depend_on_picture_and_task(world: World) -> None:
    """Otherwise equality would show nothing."""
    assert len({tuple(world.expected(asked)) for asked in ASKED}) == len(ASKED)
    assert len({tuple(world.expected(Asked(number, "<OD>"))) for number in range(4)}) == 4


Check = Callable[[EngineStatus], bool]


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({}, lambda status: status.preemption_count == 0),
        ({"max_num_batched_tokens": 160}, lambda status: status.step_count > COUNT),
        ({"enable_prefix_caching": False}, lambda status: status.prefix_hit_token_count == 0),
        ({"block_count": 90}, lambda status: status.preemption_count > 0),
        ({"max_num_seqs": 3}, lambda status: status.step_count > 80),
    ],
    ids=["at once", "a long front at a time", "no cache", "preempted", "three seats"],
)
def test_all_at_once_twice(world: World, changes: dict[str, object], check: Check) -> None:
    local = world.engine(**changes)
    asked = [*ASKED, *reversed(ASKED)]
    got = local.run([world.add(local, one) for one in asked])
    assert got == [world.expected(one) for one in asked]
    assert check(local.status), local.status
    assert local.status.used_block_count == 0


def test_a_front_is_computed_once_for_all_who_ask_the_same_of_the_same_picture(world: World) -> None:
    """At once, and later, without its rows."""
    local = world.engine()
    asked = Asked(2, "<OD>")
    got = local.run([world.add(local, asked) for _ in range(3)])
    assert got == [world.expected(asked)] * 3
    assert local.status.item_row_count == ROW_COUNT
    local.front.close_all()
    local.front.asked.clear()
    assert local.run([world.add(local, asked)]) == [world.expected(asked)]
    assert local.status.item_row_count == ROW_COUNT
    assert local.front.asked == [], "rows that the cache covers are not asked for"
    assert local.status.prefix_hit_token_count % ROW_MULTIPLE == 0 < local.status.prefix_hit_token_count


def test_another_task_or_picture_is_no_hit(world: World) -> None:
    """What is kept of a picture depends on the words that it was read with."""
    local = world.engine()
    several = [Asked(2, "<OD>"), Asked(2, "<CAPTION>"), Asked(1, "<OD>"), Asked(2, "<OD>")]
    for asked in several:
        assert local.run([world.add(local, asked)]) == [world.expected(asked)]
    assert local.status.item_row_count == 3 * ROW_COUNT


def test_in_whatever_order_fronts_leave_the_cache(world: World) -> None:
    """Blocks of a front may be lost singly; what is left of it is no front of another task."""
    local = world.engine(block_count=60)
    asked = [Asked(2, "<OD>"), Asked(2, "<CAPTION>"), Asked(1, "<OCR>")] * 4
    for one in asked:
        assert local.run([world.add(local, one)]) == [world.expected(one)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_answer_as_long_as_it_may_be_ends_with_the_end(world: World, count: int) -> None:
    local = world.engine()
    sequence_id = world.add(local, ASKED[0], count)
    (tokens,) = local.run([sequence_id])
    assert tokens == world.expected(ASKED[0], count)
    assert tokens[-1] == world.end
    assert local.front.reports[sequence_id][-1].finish == "length"


def test_no_run_comes_twice(world: World) -> None:
    """Without the rule the tiny model repeats itself; with it no run of three comes twice."""
    local = world.engine()
    long = [world.add(local, asked, 120, temperature=0.1, seed=1) for asked in ASKED]
    for tokens in local.run(long):
        runs = [tuple(tokens[at : at + RUN_LENGTH]) for at in range(len(tokens) - RUN_LENGTH)]
        assert len(set(runs)) == len(runs)
    free = local.front.add(
        world.front.token_ids("<OD>", []), [key(0)], max_token_count=120, sampling=SamplingSettings()
    )
    (tokens,) = local.run([free])
    runs = [tuple(tokens[at : at + RUN_LENGTH]) for at in range(len(tokens) - RUN_LENGTH)]
    assert len(set(runs)) < len(runs)


def test_a_front_longer_than_a_step_is_refused(world: World) -> None:
    local = world.engine(max_num_batched_tokens=64)
    long, short = world.add(local, ASKED[5]), world.add(local, ASKED[0])
    assert local.run([long, short]) == [[], world.expected(ASKED[0])]
    (refusal,) = local.front.others
    assert isinstance(refusal, SequenceRefused)
    assert (refusal.sequence_id, refusal.reason) == (long, "span_length")


def test_blocks_that_hold_a_front_and_an_answer(world: World) -> None:
    """A block size that does not divide the multiple: nothing is shared, and all is right."""
    runner = load_runner(settings_for(world.folder, block_size=24), lambda fraction, text: None)
    local = LocalEngine(world.folder, runner, block_size=24)
    for number, size in enumerate(SIZES):
        local.front.encode(key(number), picture(number, size))
    asked = [*ASKED, *ASKED[:3]]
    assert local.run([world.add(local, one) for one in asked]) == [world.expected(one) for one in asked]


def test_in_bfloat16(world: World) -> None:
    """Tokens part from float32's after a while; the first ones of most answers are the same."""
    runner = load_runner(settings_for(world.folder, dtype="bfloat16"), lambda fraction, text: None)
    local = LocalEngine(world.folder, runner)
    for number, size in enumerate(SIZES):
        local.front.encode(key(number), picture(number, size))
    got = local.run([world.add(local, asked) for asked in ASKED])
    same = [tokens[0] == world.expected(asked)[0] for tokens, asked in zip(got, ASKED, strict=True)]
    assert sum(same) > len(ASKED) // 2
