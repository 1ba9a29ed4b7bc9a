"""Rows of one step that are computed in different ways: with an adapter and without, of short sequences and
of long ones. Greedy tokens equal transformers', which computes each sequence alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm_service.engine.batch import SampledToken, ScheduledSequence
from llm_service.engine.engine import Engine
from llm_service.engine.messages import AddSequence, EngineStatus, StepReport, StoppingSettings
from llm_service.engine.sequence import Sequence
from tests.asking import picture
from tests.families.phi4_multimodal import CASE, SWITCH
from tests.laying_out import Layouter
from tests.oracle import Oracle
from tests.unit.runner.driver import BLOCK_SIZE, GREEDY, Checkpoint, Driver

COUNT = 12
MARK = "<|image|>"
WORDS = ("red", "blue", "the", "circle", "42", "picture", "asks", "two", "triangle", "left", "which")


@dataclass
class Scene:
    """A tiny checkpoint's LLM half, and transformers beside it."""

    folder: Path
    driver: Driver
    front: Layouter
    oracle: Oracle

    def expected(self, text: str, shown: list[Image.Image]) -> list[int]:
        return self.oracle.ask(CASE, self.folder, text, shown, new_tokens=COUNT).new_ids

    def add(self, text: str, shown: list[Image.Image]) -> Sequence:
        keys = [f"{id(each)}" for each in shown]
        for key, each in zip(keys, shown, strict=True):
            if key not in self.driver.rows.items:
                self.driver.rows.items[key] = self.driver.checkpoint.encode(each)
        infos = [self.driver.rows.items[key].info for key in keys]
        return self.driver.add(self.front.token_ids(text, infos), keys)

    def text_of(self, length: int, start: str) -> str:
        """A text of so many tokens, those of `start` in front, the same words in every run."""
        dice, text = random.Random(length), start
        while (lacking := length - len(self.front.token_ids(text, []))) > 0:
            text += f" {dice.choice(WORDS) if lacking > 8 else 'a'}"
        assert lacking == 0, "a word of more tokens than were left"
        return text


@pytest.fixture(scope="module")
def scene(tiny_checkpoint: Callable[[str], Path], oracle: Oracle) -> Scene:
    folder = tiny_checkpoint("phi4_multimodal")
    driver = Driver(Checkpoint(folder), max_model_len=4096, max_num_batched_tokens=8192, kv_cache_gib=0.05)
    return Scene(folder, driver, Layouter(folder), oracle)


def questions(scene: Scene) -> list[tuple[str, list[Image.Image]]]:
    """With pictures and without, short, long, and in between: passing the switch while they answer."""
    shown = picture(1, CASE.sizes[0])
    return [
        ("hello, who are you?", []),
        (f"look: {MARK} what is this?", [shown]),
        (scene.text_of(SWITCH - COUNT // 2, "hello"), []),
        (scene.text_of(SWITCH + 40, "what is it?"), []),
        (f"{MARK} and {MARK} and {MARK}", [shown, picture(2, CASE.sizes[1]), shown]),
    ]


def test_together_and_in_chunks(scene: Scene) -> None:
    asked = questions(scene)
    expected = [scene.expected(*each) for each in asked]
    for chunk in (8192, 300):
        sequences = [scene.add(*each) for each in asked]
        assert [sequence.variant for sequence in sequences] == ["", "vision", "", "", "vision"]
        assert [sequence.switched for sequence in sequences] == [False, False, False, True, True]
        assert scene.driver.generate(sequences, COUNT, chunk) == expected
        assert [sequence.switched for sequence in sequences] == [False, False, True, True, True]


def test_in_any_mixture(scene: Scene) -> None:
    dice = random.Random(3)
    asked = questions(scene)
    sequences = [scene.add(*each) for each in asked]
    while unfinished := [sequence for sequence in sequences if sequence.output_count < COUNT]:
        chosen = dice.sample(unfinished, dice.randint(1, len(unfinished)))
        scene.driver.step([(sequence, dice.choice([1, 40, 700])) for sequence in chosen])
    answers = [sequence.token_ids[sequence.prompt_length :] for sequence in sequences]
    assert answers == [scene.expected(*each) for each in asked]


@pytest.mark.parametrize("short", range(-1, 3))
def test_around_the_switch(short: int, scene: Scene) -> None:
    """Prompts of one token too many, of just as many as are short, and a little fewer."""
    text = scene.text_of(SWITCH - short, "how many?")
    assert scene.driver.generate([scene.add(text, [])], COUNT) == [scene.expected(text, [])]


def test_a_picture_whose_answer_passes_the_switch(scene: Scene) -> None:
    shown = picture(4, CASE.sizes[1])
    rows = scene.driver.checkpoint.encode(shown).info.row_count
    text = scene.text_of(SWITCH - rows - COUNT // 2, f"see {MARK}")
    sequence = scene.add(text, [shown])
    assert SWITCH - COUNT < sequence.prompt_length <= SWITCH
    assert scene.driver.generate([sequence], COUNT) == [scene.expected(text, [shown])]
    assert sequence.switched


def test_the_adapter_and_the_frequencies_count(scene: Scene) -> None:
    """Otherwise equality would show nothing."""
    text, shown = f"look: {MARK} what is this?", picture(1, CASE.sizes[0])
    plain = scene.add(text, [shown])
    plain.variant = ""
    assert scene.driver.generate([plain], COUNT) != [scene.expected(text, [shown])]
    long = scene.text_of(SWITCH + 40, "what is it?")
    short = scene.add(long, [])
    short.switched = False
    assert scene.driver.generate([short], COUNT) != [scene.expected(long, [])]


def test_recorded_steps_are_for_plain_rows_alone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording computes every row in the plain way; one row that needs another keeps the step from it."""
    runner, replayed = scene.driver.runner, []

    def replay(graphs: Any, items: list[ScheduledSequence]) -> list[SampledToken]:
        replayed.append([item.sequence.sequence_id for item in items])
        return [SampledToken(item.sequence.sequence_id, 5) for item in items]

    text, shown = f"look: {MARK} what is this?", picture(1, CASE.sizes[0])
    plain, adapted = scene.add("hello", []), scene.add(text, [shown])
    long = scene.add(scene.text_of(SWITCH + 40, "what is it?"), [])
    scene.driver.step([(each, 4096) for each in (plain, adapted, long)])
    monkeypatch.setattr(runner, "_graphs", object())
    monkeypatch.setattr(runner, "_replay", replay)
    scene.driver.step([(plain, 1), (adapted, 1)])
    scene.driver.step([(plain, 1), (long, 1)])
    assert replayed == []
    scene.driver.step([(plain, 1)])
    assert replayed == [[plain.sequence_id]]


class NoArena:
    """Sequences without media read nothing."""

    def view(self, offset: int, byte_count: int, /) -> memoryview:
        raise AssertionError("rows of a sequence that has none")


def test_the_engine_computes_again_what_passes_the_switch(scene: Scene) -> None:
    """Twice, so that the second time both kinds of blocks are found; beside others that stay as they are."""
    texts = [
        "hello, who are you?",
        scene.text_of(SWITCH - COUNT // 2, "hello"),
        scene.text_of(SWITCH + 40, "what is it?"),
    ]
    runner, found = scene.driver.runner, list[EngineStatus]()
    engine = Engine(
        runner,
        NoArena(),
        block_count=runner.block_count,
        block_size=BLOCK_SIZE,
        max_model_len=4096,
        max_num_seqs=8,
        max_num_batched_tokens=700,
        switch_length=runner.switch_length,
    )
    for _ in range(2):
        assert answers(engine, [scene.front.token_ids(text, []) for text in texts]) == [
            scene.expected(text, []) for text in texts
        ]
        engine.check_integrity()
        found.append(engine.status())
    assert found[0].prefix_hit_token_count == 0 < found[1].prefix_hit_token_count
    assert found[1].preemption_count == 0


def answers(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of prompts that run at once."""
    tokens: dict[int, list[int]] = {}
    ended: set[int] = set()
    for number, prompt in enumerate(prompts):
        sequence_id = 100 * (1 + engine.status().step_count) + number
        tokens[sequence_id] = []
        flat = np.asarray(prompt, dtype="<i4").tobytes()
        places = np.arange(len(prompt), dtype="<i4").tobytes()
        stopping = StoppingSettings(max_token_count=COUNT)
        engine.receive(AddSequence(sequence_id, flat, places, 1, len(prompt), [], GREEDY, stopping, 0.0))
    while ended < tokens.keys():
        engine.step()
        for message in engine.take_messages():
            assert isinstance(message, StepReport), message
            for token in message.tokens:
                tokens[token.sequence_id].append(token.token_id)
            ended.update(message.ended)
    return list(tokens.values())
