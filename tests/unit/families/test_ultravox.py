"""Ultravox in parts: repositories that its config.json names, beside it, inside it, and nowhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from encoder_service.media.preprocessing import make_preprocessor
from llm_service.item_writer import placeholder_ids
from llm_service.text_tokenizer import TextTokenizer
from shared.checkpoint import WEIGHTS_FILE, find_checkpoint, read_checkpoint
from shared.errors import InvalidRequestError
from shared.families import load_family
from shared.families.base import MAIN_TENSOR, AudioClip, Family, Hears
from shared.kernels.build import built_library
from shared.kernels.library import Library
from tests.asking import sound
from tests.items import features_of
from tests.oracle import Recording
from tests.unit.families.conftest import Build
from tests.unit.families.parameters import HALVES, load

CPU = torch.device("cpu")
TEXT, AUDIO = "Tiny-Llama-Instruct", "whisper-tiny"
PLACES = ("inside", "beside")
LENGTHS = ((1, 1.3), (2, 5.1), (3, 9.37))
"""Seeds and seconds of recordings of one, two and three pieces."""


def family_in(folder: Path) -> Family:
    return load_family(read_checkpoint(folder))


def in_parts(whole: Path, target: Path, place: str, *, keeps_encoder: bool) -> Path:
    """The checkpoint with the language model, and the encoder too, in repositories of their own."""
    folder = shutil.copytree(whole, target / "ultravox", ignore=shutil.ignore_patterns("*.safetensors"))
    beside = folder if place == "inside" else target
    fields = json.loads((folder / "config.json").read_text())
    tensors = load_file(whole / WEIGHTS_FILE)
    own = {name: each for name, each in tensors.items() if name.startswith("multi_modal_projector.")}
    text = starting(tensors, "language_model.", "")
    audio = starting(tensors, "audio_tower.", "model.encoder.")
    if keeps_encoder:
        own |= starting(tensors, "audio_tower.", "audio_tower.")
        audio = {name: torch.full_like(tensor, 7.0) for name, tensor in audio.items()}
    audio["model.decoder.layer_norm.weight"] = torch.ones(32)
    repository(beside / TEXT, fields.pop("text_config"), text)
    repository(beside / AUDIO, fields.pop("audio_config"), audio)
    (folder / "preprocessor_config.json").rename(beside / AUDIO / "preprocessor_config.json")
    fields |= {"text_model_id": f"meta/{TEXT}", "audio_model_id": f"openai/{AUDIO}"}
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(own, folder / WEIGHTS_FILE)
    return folder


def starting(tensors: Mapping[str, torch.Tensor], start: str, other: str) -> dict[str, torch.Tensor]:
    return {other + name.removeprefix(start): tensors[name] for name in tensors if name.startswith(start)}


def repository(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / WEIGHTS_FILE)


@pytest.mark.parametrize("keeps_encoder", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_parts_are_found_and_are_the_whole(
    place: str, keeps_encoder: bool, tiny: Build, tmp_path: Path
) -> None:
    """With the encoder in the checkpoint too, its own tensors count."""
    folder = in_parts(tiny("ultravox"), tmp_path, place, keeps_encoder=keeps_encoder)
    for half in HALVES:
        whole, parts = load(family_in(tiny("ultravox")), half), load(family_in(folder), half)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    shown = Recording(sound(3, 5.0))
    features = [features_of(family_in(each).preprocessor(), shown) for each in (tiny("ultravox"), folder)]
    assert features[0].info == features[1].info
    np.testing.assert_array_equal(features[0].arrays["audio_values"], features[1].arrays["audio_values"])
    assert family_in(folder).context_length() == family_in(tiny("ultravox")).context_length()


def test_a_part_that_is_nowhere_is_refused_by_its_places(tiny: Build, tmp_path: Path) -> None:
    folder = in_parts(tiny("ultravox"), tmp_path, "beside", keeps_encoder=False)
    shutil.rmtree(tmp_path / TEXT)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"text_model_id": f"./{TEXT}"}))
    with pytest.raises(InvalidRequestError) as caught:
        family_in(folder)
    for shown in ("text_model_id", str(folder / TEXT), str(tmp_path / TEXT)):
        assert shown in caught.value.message


def test_a_part_that_lacks_a_tensor_is_refused(tiny: Build, tmp_path: Path) -> None:
    folder = in_parts(tiny("ultravox"), tmp_path, "beside", keeps_encoder=False)
    tensors = load_file(tmp_path / AUDIO / WEIGHTS_FILE)
    del tensors["model.encoder.conv2.bias"]
    save_file(tensors, tmp_path / AUDIO / WEIGHTS_FILE)
    with pytest.raises(InvalidRequestError, match=r"lacks encoder weights: tower\.conv2\.bias"):
        family_in(folder).tower(CPU, torch.float32)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text_config": {"model_type": "gpt2"}}, "gpt2"),
        ({"audio_config": {"model_type": "wav2vec2"}}, "wav2vec2"),
        ({"num_projector_layers": 2}, "layers of attention"),
        ({"stack_factor": 0}, "stack_factor"),
        ({"text_model_id": 3}, "text_model_id"),
        ({"text_config": {"hidden_size": "wide"}}, "text_config"),
    ],
)
def test_what_is_not_served_is_refused(
    fields: Mapping[str, Any], said: str, tiny: Build, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny("ultravox"), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(InvalidRequestError, match=said):
        family_in(folder).config()


def test_a_placeholder_in_the_vocabulary_and_one_behind_it(tiny: Build, tmp_path: Path) -> None:
    """Service and layout mean the same token."""
    folder = shutil.copytree(tiny("ultravox"), tmp_path / "listed")
    tokenizer = TextTokenizer.load(folder)
    known = tokenizer.hf
    known.add_special_tokens({"additional_special_tokens": ["<|audio|>", "<|later|>"]})
    known.save_pretrained(folder)
    for each, behind in ((tiny("ultravox"), True), (folder, False)):
        family = family_in(each)
        layout, tokenizer = family.prompt_layout(), TextTokenizer.load(each, family.config())
        size = len(tokenizer)
        found = placeholder_ids(tokenizer, layout, family.modalities)["audio"]
        assert (found >= size) == behind
        info = features_of(family.preprocessor(), Recording(sound(1, 0.6))).info
        expanded = layout.expand([5, found, 6], [info])
        assert expanded.token_ids == [5, *[tokenizer.end_token_id] * info.row_count, 6]


@pytest.mark.parametrize("count", [1, 159, 161, 320, 321])
def test_the_shortest_recordings_give_a_row(count: int, tiny: Build) -> None:
    family = family_in(tiny("ultravox"))
    preprocessor = family.preprocessor()
    assert isinstance(preprocessor, Hears)
    features = preprocessor.preprocess_audio(AudioClip(sound(1, 1.0)[:count], 16_000), {})
    (tensors,) = family.tower(CPU, torch.float32).encode([features])
    assert features.info.row_count == len(tensors[MAIN_TENSOR]) == 1


@pytest.mark.parametrize("variant", ["ultravox", "ultravox_latency"])
def test_on_our_kernels(variant: str, tiny: Build, needs_compiler: None) -> None:
    """Padded pieces and blocks of latency too, which need a mask."""
    family = family_in(tiny(variant))
    preprocessor = family.preprocessor()
    batch = [features_of(preprocessor, Recording(sound(seed, length))) for seed, length in LENGTHS]
    plain, tower = (family.tower(CPU, torch.float32) for _ in range(2))
    assert tower.use_kernels(Library(built_library()).make_team(2))
    for ours, theirs in zip(tower.encode(batch), plain.encode(batch), strict=True):
        torch.testing.assert_close(ours[MAIN_TENSOR], theirs[MAIN_TENSOR], atol=5e-5, rtol=5e-5)


def test_pieces_are_the_whole(tiny: Build) -> None:
    """A recording of three pieces, of which each is encoded by itself."""
    family = family_in(tiny("ultravox"))
    tower = family.tower(CPU, torch.float32)
    features = features_of(family.preprocessor(), Recording(sound(1, 9.37)))
    parts = tower.split(features)
    assert [part.info.row_count for part in parts] == [25, 25, 9]
    assert [tower.split(part) for part in parts] == [[part] for part in parts]
    alone = torch.cat([tower.encode([part])[0][MAIN_TENSOR] for part in parts])
    torch.testing.assert_close(alone, tower.encode([features])[0][MAIN_TENSOR], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("given", [["kept"], [f"kept/{TEXT}", f"kept/{AUDIO}"]], ids=["around", "themselves"])
def test_parts_are_found_in_the_folders_that_are_named(given: list[str], tiny: Build, tmp_path: Path) -> None:
    folder = in_parts(tiny("ultravox"), tmp_path, "beside", keeps_encoder=False)
    (tmp_path / "kept").mkdir()
    for name in (TEXT, AUDIO):
        (tmp_path / name).rename(tmp_path / "kept" / name)
    with pytest.raises(InvalidRequestError, match="--model-parts"):
        family_in(folder)
    named = [str(tmp_path / each) for each in given]
    family = load_family(find_checkpoint(str(folder), named))
    for half in HALVES:
        whole, parts = load(family_in(tiny("ultravox")), half), load(family, half)
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert isinstance(make_preprocessor(str(folder), named), Hears)
