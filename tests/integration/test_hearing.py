"""The engine over models that hear: the tokens are the oracle's, however the work is cut and mixed.

Tiny checkpoints: prompts with none, one and several recordings of different lengths, alone and together in
one batch, in small steps, from the cache and out of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_service.engine.messages import EngineStatus
from llm_service.runner.load import load_runner
from llm_service.runner.model_runner import ModelRunner
from shared.families.base import AudioClip
from tests.asking import sound
from tests.families import all_cases
from tests.integration.engine_case import LocalEngine
from tests.integration.engine_front import settings_for
from tests.items import features_of
from tests.laying_out import Layouter
from tests.oracle import Oracle, Recording

COUNT = 12
BLOCKS = {"granite_speech": 36, "phi4_multimodal": 45, "ultravox": 36, "voxtral": 110}
"""Families that are tested here, and so few blocks that their prompts of eight do not all fit."""

Parts = tuple[str | int, ...]
"""A prompt: words, and recordings by their numbers."""

ASKED: list[Parts] = [
    ("Who are you?",),
    ("Say something long about nothing at all, in " + "very " * 12,),
    (0, "What is this?"),
    ("What is this?", 1),
    (0, 1, "Compare the two."),
    (2, "or", 3, "which one?"),
    (0, "and", 1, 2, "in " + "very " * 6 + "many words"),
    (3, "What is this?"),
]


class World:
    """One checkpoint, its runner, and the oracle's answers."""

    def __init__(self, model_type: str, folder: Path, oracle: Oracle) -> None:
        self.case = all_cases()[model_type]
        self.folder = folder
        self.runner: ModelRunner = load_runner(settings_for(folder), lambda fraction, text: None)
        self._oracle = oracle
        self._layouter = Layouter(folder)
        first, second = self.case.durations
        self.clips = [sound(number, length) for number, length in enumerate((first, second, 0.4, first))]
        self._answers: dict[Parts, list[int]] = {}

    def engine(self, **changes: object) -> LocalEngine:
        local = LocalEngine(self.folder, self.runner, **changes)
        for number, samples in enumerate(self.clips):
            local.front.hear(key(number), AudioClip(samples, 16_000))
        return local

    def add(self, local: LocalEngine, parts: Parts) -> int:
        numbers = [part for part in parts if isinstance(part, int)]
        preprocessor = local.front.preprocessor
        infos = [features_of(preprocessor, Recording(self.clips[number])).info for number in numbers]
        token_ids = self._layouter.token_ids(self._text(parts), infos)
        return local.front.add(token_ids, [key(number) for number in numbers], max_token_count=COUNT)

    def expected(self, parts: Parts) -> list[int]:
        if parts not in self._answers:
            shown = [Recording(self.clips[part]) for part in parts if isinstance(part, int)]
            answer = self._oracle.ask(self.case, self.folder, self._text(parts), shown, new_tokens=COUNT)
            self._answers[parts] = answer.new_ids
        return self._answers[parts]

    def _text(self, parts: Parts) -> str:
        placeholder = self._layouter.layout.placeholder_text("audio")
        return "".join(placeholder if isinstance(part, int) else part for part in parts)


def key(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture(scope="module", params=BLOCKS)
def world(request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path], oracle: Oracle) -> World:
    return World(request.param, tiny_checkpoint(request.param), oracle)


def test_each_alone(world: World) -> None:
    for parts in ASKED:
        local = world.engine()
        assert local.run([world.add(local, parts)]) == [world.expected(parts)], parts


def test_answers_depend_on_every_recording(world: World) -> None:
    """Otherwise equality would show nothing."""
    answers = [world.expected((0, number, "Compare the two.")) for number in range(4)]
    answers += [world.expected((number, 0, "Compare the two.")) for number in range(1, 4)]
    assert len({tuple(tokens) for tokens in answers}) > 4


Check = Callable[[EngineStatus], bool]


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({}, lambda status: status.preemption_count == 0),
        ({"max_num_batched_tokens": 7}, lambda status: status.step_count > 50),
        ({"enable_prefix_caching": False}, lambda status: status.prefix_hit_token_count == 0),
        ({"block_count": None}, lambda status: status.preemption_count > 0),
        ({"max_num_seqs": 2}, lambda status: status.step_count > 50),
    ],
    ids=["at once", "small steps", "no cache", "preempted", "two seats"],
)
def test_all_at_once_twice(world: World, changes: dict[str, object], check: Check) -> None:
    if "block_count" in changes:
        changes = {"block_count": BLOCKS[world.case.model_type]}
    local = world.engine(**changes)
    asked = [*ASKED, *reversed(ASKED)]
    got = local.run([world.add(local, parts) for parts in asked])
    assert got == [world.expected(parts) for parts in asked]
    assert check(local.status), local.status
    assert local.status.used_block_count == 0


def test_a_recording_that_was_heard_is_not_asked_for_again(world: World) -> None:
    local = world.engine()
    local.run([world.add(local, (0, "What is this?"))])
    local.front.close_all()
    local.front.asked.clear()
    asked: Parts = (0, "What is this? And why?")
    assert local.run([world.add(local, asked)]) == [world.expected(asked)]
    assert local.status.prefix_hit_token_count > 0
