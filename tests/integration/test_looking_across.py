"""The engine over a model whose text looks at pictures across: the tokens are transformers' own.

Llama 3.2 Vision, tiny: prompts with none, one and several pictures, side by side and apart,
together in one batch, in small steps, from the cache and out of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_service.engine.messages import EngineStatus
from llm_service.runner.load import load_runner
from llm_service.runner.model_runner import ModelRunner
from tests.families.mllama import PICTURE, TILES, build
from tests.integration.engine_case import LocalEngine
from tests.integration.engine_front import draw_picture, settings_for

COUNT = 16
BLOCK = 4
PICTURE_ROWS = TILES * 5
LOOKING_LAYER = 1
SIZES = ((70, 56), (40, 130), (28, 28), (200, 40))

Parts = tuple[str | int, ...]
"""A message: words, and pictures by their numbers."""

ASKED: list[Parts] = [
    ("Who are you?",),
    ("Say something long about nothing at all, in " + "very " * 40,),
    (0, "What is this?"),
    ("What is this?", 1),
    (0, 1, "Compare the two."),
    (2, "or", 3, "which one?"),
    (0, "and", 1, 2, "and", 0, "in " + "very " * 20 + "many words"),
    (3, "What is this?"),
]


class World:
    """One checkpoint, its runner, and the whole model in transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import (
            AutoTokenizer,
            MllamaForConditionalGeneration,
            MllamaImageProcessorPil,
            MllamaProcessor,
        )

        self.folder = folder
        self.runner: ModelRunner = load_runner(settings_for(folder), lambda fraction, text: None)
        pixels = MllamaImageProcessorPil.from_pretrained(folder)
        self._processor: Any = MllamaProcessor(pixels, AutoTokenizer.from_pretrained(folder))
        self._model: Any = MllamaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self._answers: dict[Parts, list[int]] = {}

    def engine(self, **changes: object) -> LocalEngine:
        local = LocalEngine(self.folder, self.runner, **changes)
        for number, size in enumerate(SIZES):
            local.front.encode(key(number), draw_picture(number, size))
        return local

    def add(self, local: LocalEngine, parts: Parts) -> int:
        (ids,) = self._inputs(parts)["input_ids"].tolist()
        return local.front.add(ids, [key(part) for part in parts if isinstance(part, int)])

    def expected(self, parts: Parts) -> list[int]:
        if parts not in self._answers:
            inputs = self._inputs(parts)
            with torch.no_grad():
                output = self._model.generate(
                    **inputs, max_new_tokens=COUNT, do_sample=False, eos_token_id=None
                )
            self._answers[parts] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return self._answers[parts]

    def _inputs(self, parts: Parts) -> Any:
        text = "".join(PICTURE if isinstance(part, int) else part for part in parts)
        prompt = f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"
        drawn = [draw_picture(part, SIZES[part]) for part in parts if isinstance(part, int)]
        given = {"images": [drawn]} if drawn else {}
        return self._processor(text=[prompt], add_special_tokens=False, return_tensors="pt", **given)


def key(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(build(tmp_path_factory.mktemp("mllama")))


@contextmanager
def counted_rows(world: World) -> Iterator[list[int]]:
    """Rows of which a looking layer computes keys, step by step."""
    decoder: Any = world.runner._model
    counts: list[int] = []
    projection = decoder.module.model.layers[LOOKING_LAYER].cross_attn.k_proj
    hook = projection.register_forward_hook(lambda module, args, output: counts.append(output.shape[1]))
    try:
        yield counts
    finally:
        hook.remove()


@pytest.mark.parametrize("parts", ASKED)
def test_one_alone(world: World, parts: Parts) -> None:
    local = world.engine()
    assert local.run([world.add(local, parts)]) == [world.expected(parts)]


def test_answers_depend_on_every_picture(world: World) -> None:
    """Otherwise equality would show nothing. Their order hardly counts: text looks at a set of rows."""
    second = {tuple(world.expected((0, number, "Compare the two."))) for number in range(4)}
    first = {tuple(world.expected((number, 0, "Compare the two."))) for number in range(4)}
    assert len(second) == len(first) == 4


Check = Callable[[EngineStatus], bool]


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({}, lambda status: status.preemption_count == 0),
        ({"max_num_batched_tokens": 7}, lambda status: status.step_count > 100),
        ({"enable_prefix_caching": False}, lambda status: status.prefix_hit_token_count == 0),
        ({"block_count": 70}, lambda status: status.preemption_count > 0),
        ({"max_num_seqs": 2}, lambda status: status.step_count > 50),
    ],
    ids=["at once", "small steps", "no cache", "preempted", "two seats"],
)
def test_all_at_once_twice(world: World, changes: dict[str, object], check: Check) -> None:
    local = world.engine(**changes)
    asked = [*ASKED, *reversed(ASKED)]
    got = local.run([world.add(local, parts) for parts in asked])
    assert got == [world.expected(parts) for parts in asked]
    assert check(local.status), local.status
    assert local.status.used_block_count == 0


def test_keys_of_a_picture_are_computed_once_for_all_who_ask_about_it(world: World) -> None:
    """Its rows fill whole blocks here; where they do not, those behind the last whole block come again."""
    assert PICTURE_ROWS % BLOCK == 0
    local = world.engine()
    asked: list[Parts] = [(0, "What is this?"), (0, "Which colour has it?"), ("Tell me about", 0)]
    with counted_rows(world) as counts:
        local.run([world.add(local, asked[0])])
        assert sum(counts) == PICTURE_ROWS
        local.front.close_all()
        local.front.asked.clear()
        got = local.run([world.add(local, parts) for parts in asked[1:]])
    assert sum(counts) == PICTURE_ROWS
    assert got == [world.expected(parts) for parts in asked[1:]]
    assert local.front.asked == [], "rows that the cache covers are not asked for"
    assert local.status.prefix_hit_token_count >= 2 * PICTURE_ROWS


def test_text_alone_computes_no_looking_layer(world: World) -> None:
    local = world.engine()
    with counted_rows(world) as counts:
        assert local.run([world.add(local, ASKED[0])]) == [world.expected(ASKED[0])]
    assert counts == []


def test_in_bfloat16(world: World) -> None:
    """Tokens part from float32's after a while; the first ones of most answers are the same."""
    settings = settings_for(world.folder, dtype="bfloat16")
    local = LocalEngine(world.folder, load_runner(settings, lambda fraction, text: None))
    for number, size in enumerate(SIZES):
        local.front.encode(key(number), draw_picture(number, size))
    got = local.run([world.add(local, parts) for parts in ASKED])
    assert [len(tokens) for tokens in got] == [COUNT] * len(ASKED)
    same = [tokens[0] == world.expected(parts)[0] for tokens, parts in zip(got, ASKED, strict=True)]
    assert sum(same) > len(ASKED) // 2


def test_another_picture_is_no_hit(world: World) -> None:
    local = world.engine()
    local.run([world.add(local, (0, "What is this?"))])
    other: Parts = (1, "What is this?")
    assert local.run([world.add(local, other)]) == [world.expected(other)]
    assert local.status.prefix_hit_token_count == 0
