"""Greedy tokens equal transformers' `generate`, however a batch is cut and mixed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_service.engine.messages import SamplingSettings, StoppingSettings
from llm_service.engine.sequence import Sequence
from shared.families.base import EncodedItem, MediaInfo, RawTensor
from shared.torch_tensors import from_raw, to_raw
from tests.checkpoints import build_tiny
from tests.reference import ReferenceModel
from tests.unit.runner.conftest import Tinies, Tiny, make_tiny
from tests.unit.runner.driver import BLOCK_SIZE

COUNT = 10
Case = tuple[str, list[int]]
CASES: list[Case] = [
    ("tell me something", []),
    ("what is this?", [0]),
    ("what is this?", [1]),
    ("and this larger one, described at some length please?", [2]),
    ("compare the two", [0, 2]),
]


def _add(tiny: Tiny, case: Case) -> tuple[Sequence, list[int]]:
    """A sequence and its expected answer."""
    text, picture_ids = case
    return _add_prompt(tiny, case), tiny.expected(tiny.prompt(len(picture_ids), text), picture_ids, COUNT)


def _add_prompt(tiny: Tiny, case: Case) -> Sequence:
    text, picture_ids = case
    return tiny.driver.add(tiny.prompt(len(picture_ids), text), [f"p{index}" for index in picture_ids])


def test_alone(tiny: Tiny) -> None:
    for case in CASES:
        sequence, expected = _add(tiny, case)
        assert tiny.driver.generate([sequence], COUNT) == [expected]


def test_answers_depend_on_the_picture(tiny: Tiny) -> None:
    """Otherwise equality with pictures would show nothing."""
    expected = [tiny.expected(tiny.prompt(1, "what is this?"), [index], COUNT) for index in range(3)]
    assert len({tuple(tokens) for tokens in expected}) == 3


def test_sixteen_at_once(tiny: Tiny) -> None:
    pairs = [_add(tiny, CASES[index % len(CASES)]) for index in range(16)]
    generated = tiny.driver.generate([sequence for sequence, _ in pairs], COUNT)
    assert generated == [expected for _, expected in pairs]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, BLOCK_SIZE, 7, 16, 33])
def test_prompt_in_chunks(tiny: Tiny, chunk: int) -> None:
    pairs = [_add(tiny, case) for case in CASES]
    generated = tiny.driver.generate([sequence for sequence, _ in pairs], COUNT, chunk)
    assert generated == [expected for _, expected in pairs]


@pytest.mark.parametrize("seed", range(4))
def test_random_mixture_of_chunks_and_decoding(tiny: Tiny, seed: int) -> None:
    """Each step takes some of the sequences, in any order, each with some tokens."""
    dice = random.Random(seed)
    pairs = [_add(tiny, dice.choice(CASES)) for _ in range(6)]
    while unfinished := [sequence for sequence, _ in pairs if sequence.output_count < COUNT]:
        chosen = dice.sample(unfinished, dice.randint(1, len(unfinished)))
        tiny.driver.step([(sequence, dice.choice([1, 2, 5, 40])) for sequence in chosen])
    answers = [sequence.token_ids[sequence.prompt_length :] for sequence, _ in pairs]
    assert answers == [expected for _, expected in pairs]


def test_shared_prefix_blocks(tiny: Tiny) -> None:
    """A second sequence reads the first one's blocks and computes the rest itself."""
    first, expected = _add(tiny, CASES[3])
    tiny.driver.generate([first], COUNT)
    second, _ = _add(tiny, CASES[3])
    shared = (second.prompt_length - 1) // BLOCK_SIZE
    second.block_table.extend(first.block_table[:shared])
    second.computed_count = shared * BLOCK_SIZE
    other, other_expected = _add(tiny, CASES[1])
    assert tiny.driver.generate([second, other], COUNT) == [expected, other_expected]


def test_recomputed_after_preemption(tiny: Tiny) -> None:
    """Prompt and generated tokens are computed again in other blocks, in chunks over their border."""
    sequence, expected = _add(tiny, CASES[4])
    tiny.driver.generate([sequence], COUNT // 2)
    tiny.driver.free = list(reversed(sequence.block_table)) + tiny.driver.free
    sequence.block_table.clear()
    sequence.computed_count = 0
    assert tiny.driver.generate([sequence], COUNT, 9) == [expected]


def test_many_lengths_at_once(tiny: Tiny) -> None:
    """Decoding sequences fall into several groups of similar length."""
    words = "one two three four five six seven eight nine ten "
    cases: list[Case] = [(words * repeat, []) for repeat in (1, 2, 6, 1, 3)]
    pairs = [_add(tiny, case) for case in cases]
    generated = tiny.driver.generate([sequence for sequence, _ in pairs], COUNT)
    assert generated == [expected for _, expected in pairs]


def test_one_item_of_two_pictures(tinies: Tinies) -> None:
    """Precomputed embeddings of several pictures are one item with a span for each picture."""
    tiny = tinies("qwen2_vl")
    stored = tiny.driver.rows.items
    parts = [stored[key] for key in ("p0", "p2")]
    tensors = [part.tensors["embeds"] for part in parts]
    rows = sum(tensor.shape[0] for tensor in tensors)
    joined = RawTensor("float32", (rows, tensors[0].shape[1]), b"".join(tensor.data for tensor in tensors))
    info = MediaInfo(rows, grids=tuple(grid for part in parts for grid in part.info.grids))
    stored["pair"] = EncodedItem(info, {"embeds": joined})
    expected = tiny.expected(tiny.prompt(2, "compare the two"), [0, 2], COUNT)
    for chunk in (1000, 7):
        sequence = tiny.driver.add(tiny.prompt(1, "compare the two"), ["pair"])
        assert [span.first_row for span in sequence.spans] == [0, tensors[0].shape[0]]
        assert tiny.driver.generate([sequence], COUNT, chunk) == [expected]


def test_processors_equal_transformers(tinies: Tinies) -> None:
    """Repetition penalty and least token count give what `generate` gives with the same settings."""
    tiny = tinies("qwen2_vl")
    prompt = tiny.prompt(1, "what is this?")
    plain = tiny.expected(prompt, [0], COUNT)
    stop = plain[3]
    expected = tiny.reference.generate(
        prompt, [tiny.pictures[0]], COUNT, repetition_penalty=1.7, min_new_tokens=6, eos_token_id=stop
    )
    sequence = tiny.driver.add(
        prompt,
        ["p0"],
        SamplingSettings(repetition_penalty=1.7),
        StoppingSettings(max_token_count=COUNT, min_token_count=6, stop_token_ids=[stop]),
    )
    generated = tiny.driver.generate([sequence], COUNT)[0]
    assert generated[: len(expected)] == expected
    assert generated != plain


def test_bfloat16_rows_are_converted(tinies: Tinies) -> None:
    """Rows of another type than the model's are taken as numbers, not as bytes."""
    tiny = tinies("qwen2_vl")
    item = tiny.driver.rows.items["p0"]
    rounded = from_raw(item.tensors["embeds"]).to(torch.bfloat16)
    tiny.driver.rows.items["half"] = EncodedItem(item.info, {"embeds": to_raw(rounded)})
    tiny.driver.rows.items["full"] = EncodedItem(item.info, {"embeds": to_raw(rounded.float())})
    prompt = tiny.prompt(1, "what is this?")
    half, full = (tiny.driver.add(prompt, [key]) for key in ("half", "full"))
    first, second = tiny.driver.generate([half, full], COUNT)
    assert first == second


WINDOWS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "every layer": ({"model_type": "llava", "text": "mistral"}, {"sliding_window": 8}),
    "some layers": (
        {"model_type": "qwen2_vl"},
        {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_sliding_windows(name: str, tmp_path: Path) -> None:
    """Layers that see the last few tokens only: whole, in chunks and while decoding."""
    variant, text_settings = WINDOWS[name]
    build_tiny(folder=tmp_path, **variant)  # type: ignore[arg-type]
    config = json.loads((tmp_path / "config.json").read_text())
    unlimited = ReferenceModel(tmp_path)
    config["text_config"] |= text_settings
    (tmp_path / "config.json").write_text(json.dumps(config))
    tiny = make_tiny(tmp_path)
    cases = CASES[1:3]
    expected = [_add(tiny, case)[1] for case in cases]
    prompt = tiny.prompt(1, CASES[1][0])
    assert expected[0] != unlimited.generate(prompt, [tiny.pictures[0]], COUNT, eos_token_id=None)
    for chunk in (1000, 5):
        sequences = [_add_prompt(tiny, case) for case in cases]
        assert tiny.driver.generate(sequences, COUNT, chunk) == expected
