"""The engine over Whisper: tokens are those of transformers' own `generate`, rules and all.

A tiny checkpoint: recordings of several lengths alone and together, in small steps, from the cache and
out of blocks; languages heard, times written, what was said before; keys of a recording computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_service.engine.messages import EngineStatus, SamplingSettings
from llm_service.runner.cpu.looking_decoder import CpuLookingDecoder
from llm_service.runner.load import load_runner
from llm_service.runner.model_runner import ModelRunner
from shared.checkpoint import read_checkpoint
from shared.families import load_family
from shared.families.base import AudioClip
from shared.families.token_rules import SpeechTask
from shared.families.writes_speech import WritesSpeech
from tests.asking import sound
from tests.families.whisper import ROWS, build
from tests.integration.engine_case import LocalEngine
from tests.integration.engine_front import settings_for

COUNT = 24
RATE = 16_000
SECONDS = (1.3, 0.4, 2.6, 4.0, 3.1, 0.05, 2.0, 1.7)


NOTHING_SAID = SpeechTask()
ENGLISH = SpeechTask(language="en")


@dataclass(frozen=True)
class Asked:
    """A recording by its number, and what to do with it."""

    clip: int
    task: SpeechTask = NOTHING_SAID


ASKED = [
    Asked(0),
    Asked(1, ENGLISH),
    Asked(2, SpeechTask(language="german", translates=True)),
    Asked(3, SpeechTask(timestamps=True)),
    Asked(4, SpeechTask(language="fr", timestamps=True)),
    Asked(5, replace(ENGLISH, previous_text="the colour of a circle")),
    Asked(6, SpeechTask(language="de", timestamps=True, previous_text="Was für ein Bild?")),
    Asked(7, SpeechTask(translates=True)),
]


class World:
    """One checkpoint, its runner, and the whole model in transformers."""

    def __init__(self, folder: Path, kernels: str = "auto") -> None:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        self.folder = folder
        settings = settings_for(folder, kernels=kernels)
        self.runner: ModelRunner = load_runner(settings, lambda fraction, text: None)
        layout = load_family(read_checkpoint(folder)).prompt_layout()
        assert isinstance(layout, WritesSpeech)
        self.layout: Any = layout
        self.processor: Any = WhisperProcessor.from_pretrained(folder)
        self.model: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.end: int = self.model.generation_config.eos_token_id
        self._answers: dict[Asked, list[int]] = {}

    def engine(self, **changes: object) -> LocalEngine:
        local = LocalEngine(self.folder, self.runner, **({"max_model_len": 800} | changes))
        for number in range(len(SECONDS)):
            local.front.hear(key(number), AudioClip(clip(number), RATE))
        return local

    def add(self, local: LocalEngine, asked: Asked, **sampling: Any) -> int:
        ids = self.prompt(asked.task)
        rules = self.layout.rules(ids, asked.task)
        return local.front.add(
            ids,
            [key(asked.clip)],
            max_token_count=COUNT + len(rules.leading),
            stop_token_ids=[self.end],
            sampling=SamplingSettings(rules=rules, **sampling),
        )

    def prompt(self, task: SpeechTask) -> list[int]:
        front, behind = self.layout.speech_prompt(task)
        text = front + task.previous_text + behind
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def expected(self, asked: Asked) -> list[int]:
        """The answer, with what the prompt leaves open of language, task and times in front."""
        if asked not in self._answers:
            self._answers[asked] = self._generate(asked)
        return self._answers[asked]

    def _generate(self, asked: Asked) -> list[int]:
        task = asked.task
        features = self.features(asked.clip)
        said = {}
        if task.previous_text:
            said["prompt_ids"] = self.processor.get_prompt_ids(task.previous_text, return_tensors="pt")
        multilingual = self.model.generation_config.is_multilingual
        wanted = {"task": "translate" if task.translates else "transcribe"} if multilingual else {}
        with torch.no_grad():
            output = self.model.generate(
                input_features=features,
                language=task.language or None,
                return_timestamps=task.timestamps,
                do_sample=False,
                max_new_tokens=COUNT,
                # Once: a model that was never trained writes times where none belong.
                force_unique_generate_call=True,
                **wanted,
                **said,
            )
        tokens: list[int] = output[0].tolist()
        # Its prompt is in front, and says all; what ours does not say is part of the answer.
        ours = self.prompt(task)
        assert tokens[: len(ours)] == ours
        return tokens[len(ours) :]

    def features(self, number: int) -> torch.Tensor:
        made = self.processor.feature_extractor(clip(number), sampling_rate=RATE, return_tensors="pt")
        features: torch.Tensor = made["input_features"]
        return features


def clip(number: int) -> Any:
    return sound(number, SECONDS[number])


def key(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture(scope="module", params=["auto", "torch"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """On our kernels, and in modeling code."""
    made = World(build(tmp_path_factory.mktemp("whisper")), request.param)
    ours = isinstance(made.runner._model, CpuLookingDecoder)
    assert ours == (request.param == "auto"), "the decoder does not run where it should"
    return made


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: str(asked.clip))
def test_one_alone(world: World, asked: Asked) -> None:
    local = world.engine()
    assert local.run([world.add(local, asked)]) == [world.expected(asked)]


def test_answers_depend_on_recording_language_and_times(world: World) -> None:
    """Otherwise equality would show nothing."""
    answers = {tuple(world.expected(asked)) for asked in ASKED}
    answers |= {tuple(world.expected(Asked(number, ENGLISH))) for number in range(len(SECONDS))}
    assert len(answers) > len(SECONDS)
    tasks = [ENGLISH, SpeechTask(language="de"), SpeechTask(language="en", timestamps=True)]
    assert len({tuple(world.expected(Asked(2, task))) for task in tasks}) == len(tasks)


Check = Callable[[EngineStatus], bool]


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({}, lambda status: status.preemption_count == 0),
        ({"max_num_batched_tokens": 23}, lambda status: status.step_count > 80),
        ({"enable_prefix_caching": False}, lambda status: status.prefix_hit_token_count == 0),
        ({"block_count": 126}, lambda status: status.preemption_count > 0),
        ({"max_num_seqs": 3}, lambda status: status.step_count > 80),
    ],
    ids=["at once", "small steps", "no cache", "preempted", "three seats"],
)
def test_all_at_once_twice(world: World, changes: dict[str, object], check: Check) -> None:
    local = world.engine(**changes)
    asked = [*ASKED, *reversed(ASKED)]
    got = local.run([world.add(local, one) for one in asked])
    assert got == [world.expected(one) for one in asked]
    assert check(local.status), local.status
    assert local.status.used_block_count == 0


def test_keys_of_a_recording_are_computed_once_for_all_who_ask_about_it(world: World) -> None:
    """At once, and later; in other languages too. Rows behind the last whole block are no exception."""
    tasks = [ENGLISH, SpeechTask(), SpeechTask(language="de", timestamps=True), ENGLISH]
    local = world.engine()
    got = local.run([world.add(local, Asked(2, task)) for task in tasks])
    assert got == [world.expected(Asked(2, task)) for task in tasks]
    assert local.status.item_row_count == ROWS
    local.front.close_all()
    local.front.asked.clear()
    later = SpeechTask(language="fr", previous_text="no matter")
    assert local.run([world.add(local, Asked(2, later))]) == [world.expected(Asked(2, later))]
    assert local.status.item_row_count == ROWS
    assert local.front.asked == [], "rows that the cache covers are not asked for"


def test_once_for_all_in_small_steps_too(world: World) -> None:
    local = world.engine(max_num_batched_tokens=16, max_num_seqs=8)
    asked = [Asked(number, task) for number in (1, 2) for task in (ENGLISH, SpeechTask(), ENGLISH)]
    got = local.run([world.add(local, one) for one in asked])
    assert got == [world.expected(one) for one in asked]
    assert local.status.item_row_count == 2 * ROWS


def test_another_recording_is_no_hit(world: World) -> None:
    local = world.engine()
    local.run([world.add(local, Asked(0, ENGLISH))])
    assert local.run([world.add(local, Asked(1, ENGLISH))]) == [world.expected(Asked(1, ENGLISH))]
    assert local.status.item_row_count == 2 * ROWS


def test_what_is_filled_in_is_never_drawn(world: World) -> None:
    """At any temperature the likeliest language is taken, and the rules hold for what is drawn behind it."""
    local = world.engine()
    task = SpeechTask(timestamps=True)
    ids = [world.add(local, Asked(3, task), temperature=2.0, seed=seed) for seed in range(6)]
    got = local.run(ids)
    expected = world.expected(Asked(3, task))
    assert {tuple(tokens[:2]) for tokens in got} == {tuple(expected[:2])}
    assert len({tuple(tokens) for tokens in got}) > 1
    config = world.model.generation_config
    for tokens in got:
        times = [token for token in tokens if token > config.no_timestamps_token_id]
        assert times == sorted(times)
        assert tokens[2] in times
        assert not set(tokens[2:]) & set(config.suppress_tokens)


def test_only_allowed_tokens_are_chosen(world: World) -> None:
    local = world.engine()
    ids = [world.add(local, Asked(1, ENGLISH), allowed_token_ids=[5, 300, world.end]) for _ in range(2)]
    for tokens in local.run(ids):
        assert set(tokens) <= {5, 300, world.end}


def test_blocks_that_hold_rows_and_text(world: World) -> None:
    """A block size that does not divide a recording's rows: those of its last block are computed again."""
    settings = settings_for(world.folder, block_size=24)
    runner = load_runner(settings, lambda fraction, text: None)
    local = LocalEngine(world.folder, runner, block_size=24, max_model_len=800)
    for number in range(len(SECONDS)):
        local.front.hear(key(number), AudioClip(clip(number), RATE))
    asked = [*ASKED, *ASKED[:3]]
    assert local.run([world.add(local, one) for one in asked]) == [world.expected(one) for one in asked]


def test_english_alone(tmp_path: Path) -> None:
    own = World(build(tmp_path, english=True))
    for task in (SpeechTask(), SpeechTask(timestamps=True), SpeechTask(previous_text="a circle")):
        local = own.engine()
        assert local.run([own.add(local, Asked(2, task))]) == [own.expected(Asked(2, task))], task
