"""The benchmark's checkpoint: real special ids, one token for each word, both halves load it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite.checkpoint import COMPLETE, ensure_checkpoint
from benchmarks.suite.tokenizer import SPECIAL_IDS
from benchmarks.suite.work import parameter_counts, work_of
from llm_service.token_table import TokenTable
from percept.bench.pictures import draw_png
from percept.bench.prompts import WORDS
from shared.checkpoint import find_checkpoint
from shared.families import load_family
from shared.families.base import Family

VOCABULARY_SIZE = 151_936


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_checkpoint(tmp_path_factory.mktemp("benchmark") / "tiny", tiny=True)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return load_family(find_checkpoint(str(folder)))


def test_special_tokens_have_the_ids_of_qwen2_vl(folder: Path, tokenizer: Any) -> None:
    known = {
        "<|endoftext|>": 151_643,
        "<|im_end|>": 151_645,
        "<|vision_start|>": 151_652,
        "<|vision_end|>": 151_653,
        "<|image_pad|>": 151_655,
        "<|video_pad|>": 151_656,
    }
    assert {token: SPECIAL_IDS[token] for token in known} == known
    assert tokenizer.convert_tokens_to_ids(list(known)) == list(known.values())
    config = json.loads((folder / "config.json").read_text())
    assert config["image_token_id"] == known["<|image_pad|>"]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [151_645, 151_643]


def test_every_word_of_the_load_generator_is_one_token(tokenizer: Any) -> None:
    assert {len(ids) for ids in tokenizer([f" {word}" for word in WORDS])["input_ids"]} == {1}
    conversation = [{"role": "user", "content": " ".join(WORDS[:104])}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert len(tokenizer(text)["input_ids"]) == 123


def test_every_token_a_random_model_may_say_has_text_of_its_own(tokenizer: Any) -> None:
    table = TokenTable(tokenizer.backend_tokenizer)
    for token in (300, 5_000, 100_000, 151_642):
        text = tokenizer.decode([token])
        assert text.strip().isprintable()
        assert text.strip()
    assert len(table.special_tokens) == len(SPECIAL_IDS)


def test_ids_that_end_an_answer_or_have_no_text_never_win(family: Family) -> None:
    import torch

    model = family.language_model(torch.device("cpu"), torch.bfloat16, "sdpa")
    with torch.inference_mode():
        logits = model.logits(model.embed(torch.tensor([42, 4_242])))
    assert logits.shape == (2, VOCABULARY_SIZE)
    assert bool((logits[:, 151_643:] == 0).all())
    assert int(logits.argmax(-1).max()) < 151_643


def test_a_picture_of_448_pixels_gives_256_rows(family: Family) -> None:
    import torch
    from PIL import Image

    picture = Image.open(io.BytesIO(draw_png("lot", 448, 448, 4)))
    features = family.preprocessor().preprocess_image(picture, {})
    tower = family.tower(torch.device("cpu"), torch.bfloat16)
    with torch.inference_mode():
        (encoded,) = tower.encode([features])
    assert {len(rows) for rows in encoded.values()} == {256}


def test_a_complete_folder_is_taken_as_it_is_and_half_a_one_is_made_anew(
    folder: Path, tmp_path: Path
) -> None:
    before = (folder / "config.json").stat().st_mtime_ns
    assert ensure_checkpoint(folder, tiny=True) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    half = tmp_path / "half"
    half.mkdir()
    (half / "rest.safetensors").touch()
    ensure_checkpoint(half, tiny=True)
    assert (half / COMPLETE).exists()
    assert not (half / "rest.safetensors").exists()


def test_the_least_work_is_counted_from_the_weights(folder: Path) -> None:
    counts = parameter_counts(folder)
    embedding = VOCABULARY_SIZE * 64
    assert counts["model.language_model.embed_tokens.weight"] == embedding
    work = work_of(folder, picture_tokens=256)
    language = sum(count for name, count in counts.items() if ".visual." not in name)
    assert work.decode_bytes == 2 * language
    assert work.prefill_flops == 2 * (language - embedding)
    tower = sum(counts.values()) - language
    assert work.picture_flops == 2 * tower * 1024 + 4 * 1024**2 * 32 * 2
