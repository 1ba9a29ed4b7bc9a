"""Granite Speech: recordings that are too short, adapters under each name and none, other language models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.checkpoint import read_checkpoint
from shared.errors import BadMediaError, InvalidRequestError
from shared.families import load_family
from shared.families.base import AudioClip, Family, Hears, MediaInfo, RowRun
from tests.asking import sound
from tests.families.parts.lora import CONFIG_FILE, PREFIX, WEIGHTS_FILE
from tests.unit.families.conftest import Build

CPU = torch.device("cpu")
NAME = "granite_speech"
RUNS = (RowRun(0, 3, "", False), RowRun(3, 4, "speech", False))


def family_in(folder: Path) -> Family:
    return load_family(read_checkpoint(folder))


def copied(tiny: Build, target: Path) -> Path:
    return shutil.copytree(tiny(NAME), target)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def hidden_of(folder: Path) -> torch.Tensor:
    """Hidden states of seven tokens, the last four with the adapter."""
    model: Any = family_in(folder).language_model(CPU, torch.float32, "sdpa")
    positions = torch.arange(7)[None]
    hidden: torch.Tensor = model.forward(model.embed(torch.arange(7)), positions, runs=RUNS)
    return hidden


@pytest.mark.parametrize(("count", "fits"), [(1, False), (256, False), (257, True), (400, True)])
def test_the_shortest_recording_has_half_a_transform_and_one_sample(
    count: int, fits: bool, family: Callable[[str], Family]
) -> None:
    preprocessor = family(NAME).preprocessor()
    assert isinstance(preprocessor, Hears)
    clip = AudioClip(sound(1, 1.0)[:count], 16_000)
    if fits:
        assert preprocessor.preprocess_audio(clip, {}).info.row_count == 3
        return
    with pytest.raises(BadMediaError, match=f"has {count} samples"):
        preprocessor.preprocess_audio(clip, {})


def test_prompts_with_recordings_have_the_adapter(family: Callable[[str], Family]) -> None:
    for variant, expected in ((NAME, "speech"), (f"{NAME}_without_adapter_tied", "")):
        layout = family(variant).prompt_layout()
        placeholder = layout.placeholder_ids()["audio"]
        assert layout.expand([1, placeholder], [MediaInfo(3)]).variant == expected
        assert layout.expand([1, 2], []).variant == ""


def test_the_adapter_counts_and_under_newer_names_too(tiny: Build, tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path / "newer")
    expected = hidden_of(folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    old, new = f"{PREFIX}language_model.model.", f"{PREFIX}model.language_model."
    save_file({name.replace(old, new): tensors[name] for name in tensors}, folder / WEIGHTS_FILE)
    assert torch.equal(hidden_of(folder), expected)
    save_file({name: torch.zeros_like(tensors[name]) for name in tensors}, folder / WEIGHTS_FILE)
    without = hidden_of(folder)
    assert torch.equal(without[:3], expected[:3])
    assert not torch.allclose(without[3:], expected[3:], atol=1e-3)


def test_an_adapter_that_is_promised_and_missing_is_refused(tiny: Build, tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path / "without")
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(InvalidRequestError, match="has_lora_adapter"):
        family_in(folder).prompt_layout()


def test_what_does_not_fit_is_refused(tiny: Build, tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path / "other")
    edit(folder / "preprocessor_config.json", n_mels=40)
    with pytest.raises(InvalidRequestError, match="rows of 80 numbers, the encoder takes 40"):
        family_in(folder).preprocessor()
    edit(folder / "preprocessor_config.json", feature_extractor_type="WhisperFeatureExtractor")
    with pytest.raises(InvalidRequestError, match="WhisperFeatureExtractor"):
        family_in(folder).preprocessor()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InvalidRequestError, match="no feature extractor"):
        family_in(folder).preprocessor()
    text = json.loads((folder / "config.json").read_text())["text_config"] | {"model_type": "llama"}
    edit(folder / "config.json", text_config=text)
    with pytest.raises(InvalidRequestError, match="'llama'; 'granite' is served"):
        family_in(folder).language_model(CPU, torch.float32, "sdpa")
