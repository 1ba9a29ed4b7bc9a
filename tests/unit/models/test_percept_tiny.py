"""The bundled checkpoint: small, complete for plain transformers, and right about the example pictures."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoConfig, Qwen2VLForConditionalGeneration

from models import BUNDLED
from models.training.cases import cases
from models.training.judge import Speaker, judge
from models.training.tally import Tally

EXAMPLES = Path(__file__).parents[3] / "examples"
MEBIBYTE = 1 << 20


@cache
def speaker() -> Speaker:
    return Speaker(BUNDLED)


def asked() -> list[Any]:
    """Every question that the examples' answers file knows, with its pictures and the right answer."""
    return [
        pytest.param(known["pictures"], known["question"], known["answer"], id=known["question"])
        for known in json.loads((EXAMPLES / "answers.json").read_text())
    ]


def message(pictures: list[str], question: str) -> dict[str, Any]:
    images = [{"type": "image", "image": Image.open(EXAMPLES / name)} for name in pictures]
    return {"role": "user", "content": [*images, {"type": "text", "text": question}]}


def test_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.glob("*.safetensors")) <= 16 * MEBIBYTE


def test_no_key_is_missing_or_unexpected() -> None:
    _, found = Qwen2VLForConditionalGeneration.from_pretrained(BUNDLED, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]


def test_it_is_a_qwen2_vl_with_room_for_a_conversation() -> None:
    config = AutoConfig.from_pretrained(BUNDLED)
    assert config.model_type == "qwen2_vl"
    assert config.text_config.max_position_embeddings >= 2048


@pytest.mark.parametrize(("pictures", "question", "answer"), asked())
def test_it_answers_the_examples(pictures: list[str], question: str, answer: str) -> None:
    assert speaker().answer([[message(pictures, question)]]) == [answer]


def test_it_talks_without_a_picture() -> None:
    talk = [
        [{"role": "user", "content": "Hello"}],
        [{"role": "user", "content": "What colour is the circle?"}],
    ]
    assert speaker().answer(talk) == [
        "Hello! Send me a picture with shapes or numbers.",
        "Please send me a picture first.",
    ]


@pytest.mark.timeout(600)
def test_unseen_pictures_are_answered_rightly() -> None:
    tally = Tally()
    judge(speaker(), list(cases(seed=77, count=90)), tally)
    assert tally.accuracy >= 0.9, tally.wrong
