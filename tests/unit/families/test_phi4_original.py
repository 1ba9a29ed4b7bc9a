"""Phi-4-multimodal as its authors published it loads like the same model in transformers' layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.checkpoint import WEIGHTS_FILE, read_checkpoint
from shared.errors import InvalidRequestError
from shared.families import load_family
from shared.families.base import Family, MediaInfo, RowRun
from tests.asking import picture, sound
from tests.families.parts.lora import PREFIX
from tests.families.parts.lora import WEIGHTS_FILE as ADAPTER_FILE
from tests.families.phi4_multimodal import TARGETS, TILE
from tests.items import features_of
from tests.laying_out import Layouter
from tests.oracle import Recording
from tests.unit.families.conftest import Build
from tests.unit.families.parameters import HALVES, load

CPU = torch.device("cpu")
NAME = "phi4_multimodal"
EMBED = "model.embed_tokens_extend."
OLDER = {
    f"{EMBED}image_embed.img_projection_up.": f"{EMBED}image_embed.img_projection.0.",
    f"{EMBED}image_embed.img_projection_down.": f"{EMBED}image_embed.img_projection.2.",
    f"{EMBED}image_embed.global_img_feature_extensor": f"{EMBED}image_embed.glb_GN",
    f"{EMBED}image_embed.sub_img_feature_extensor": f"{EMBED}image_embed.sub_GN",
    f"{EMBED}audio_embed.up_proj_for_speech.": f"{EMBED}audio_embed.audio_projection.speech.0.",
    f"{EMBED}audio_embed.down_proj_for_speech.": f"{EMBED}audio_embed.audio_projection.speech.2.",
    f"{EMBED}audio_embed.up_proj_for_vision_speech.": f"{EMBED}audio_embed.audio_projection.vision.0.",
    f"{EMBED}audio_embed.down_proj_for_vision_speech.": f"{EMBED}audio_embed.audio_projection.vision.2.",
}
HEARING = {
    "_in.gate_up_proj.": "_in.net.0.linear.",
    "_out.gate_up_proj.": "_out.net.0.linear.",
    "_in.down_proj.": "_in.net.2.",
    "_out.down_proj.": "_out.net.2.",
    "self_attn.q_proj.": "self_attn.linear_q.",
    "self_attn.k_proj.": "self_attn.linear_k.",
    "self_attn.v_proj.": "self_attn.linear_v.",
    "self_attn.o_proj.": "self_attn.linear_out.",
}
"""Parts of the names of the audio encoder's tensors."""


def older_name(name: str) -> str:
    """The authors' name for a tensor of transformers' layout."""
    if name.startswith("model.layers.") and name.split(".")[-2] in TARGETS:
        return name.replace(".weight", ".base_layer.weight")
    if name.startswith(f"{EMBED}audio_embed.encoder."):
        part = next((part for part in HEARING if part in name), None)
        return name if part is None else name.replace(part, HEARING[part])
    begin = next((begin for begin in OLDER if name.startswith(begin)), None)
    return name if begin is None else OLDER[begin] + name.removeprefix(begin)


def publish(source: Path, target: Path) -> Path:
    """The checkpoint in the authors' layout: all weights in one file, an older configuration."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*-lora", "model*.safetensors"))
    tensors = {older_name(name): value for name, value in load_file(source / WEIGHTS_FILE).items()}
    for adapter in ("vision", "speech"):
        for name, value in load_file(source / f"{adapter}-lora" / ADAPTER_FILE).items():
            tensors[name.removeprefix(PREFIX).replace(".weight", f".{adapter}.weight")] = value
    save_file(tensors, target / WEIGHTS_FILE)
    config = json.loads((source / "config.json").read_text())
    rope = config.pop("rope_parameters")
    audio = config.pop("audio_config")
    for name in ("dtype", "transformers_version"):
        config.pop(name, None)
    # The tiny vocabulary's token; the authors' files leave it to their code.
    config["audio_config"] = {"audio_token_id": audio["audio_token_id"]}
    config |= {
        "model_type": "phi4mm",
        "architectures": ["Phi4MMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_phi4mm.Phi4MMConfig"},
        "embd_layer": {
            "embedding_cls": "image_audio",
            "image_embd_layer": {"crop_size": TILE, "hd_transform_order": "sub_glb"},
            "audio_embd_layer": {"downsample_rate": 1},
        },
        "audio_processor": {"name": "cascades", "config": older_hearing(audio)},
        "img_processor": None,
        "rope_theta": rope["rope_theta"],
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "rope_scaling": {
            "type": "longrope",
            "short_factor": rope["short_factor"],
            "long_factor": rope["long_factor"],
        },
        "torch_dtype": "bfloat16",
        "vision_lora": {"dp": 0.0, "layer": "layers.*", "lora_alpha": 16, "r": 8},
        "speech_lora": {"dp": 0.01, "layer": "layers.*", "lora_alpha": 8, "r": 4},
    }
    (target / "config.json").write_text(json.dumps(config))
    file = target / "preprocessor_config.json"
    settings = json.loads(file.read_text()) | {
        "image_processor_type": "Phi4MMImageProcessor",
        "feature_extractor_type": "Phi4MMAudioFeatureExtractor",
    }
    file.write_text(json.dumps(settings))
    return target


def older_hearing(audio: dict[str, Any]) -> dict[str, Any]:
    """The audio encoder's configuration in the authors' words."""
    same = (
        "activation",
        "chunk_size",
        "left_chunk",
        "kernel_size",
        "input_size",
        "num_blocks",
        "time_reduction",
    )
    return {name: audio[name] for name in same} | {
        "activation_checkpointing": "",
        "attention_dim": audio["hidden_size"],
        "attention_heads": audio["num_attention_heads"],
        "linear_units": audio["intermediate_size"],
        "ext_pw_out_channel": audio["ext_pw_out_channel"],
        "depthwise_seperable_out_channel": audio["depthwise_separable_out_channel"],
        "nemo_conv_settings": {"conv_channels": audio["nemo_conv_channels"]},
        "relative_attention_bias_args": {"type": "t5", "t5_bias_max_distance": audio["bias_max_distance"]},
    }


@pytest.fixture
def original(tiny: Build, tmp_path: Path) -> Path:
    return publish(tiny(NAME), tmp_path / "original")


def family_in(folder: Path) -> Family:
    return load_family(read_checkpoint(folder))


def test_both_halves_are_those_of_the_other_layout(original: Path, tiny: Build) -> None:
    for half in HALVES:
        expected, found = load(family_in(tiny(NAME)), half), load(family_in(original), half)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_it_is_used_alike(original: Path, tiny: Build) -> None:
    known, found = family_in(tiny(NAME)), family_in(original)
    assert (found.hidden_size(), found.context_length()) == (known.hidden_size(), known.context_length())
    assert found.vocabulary_size() == known.vocabulary_size()
    assert found.prompt_layout() == known.prompt_layout()
    texts = [Layouter(folder).token_ids("hello<|image|> you", []) for folder in (tiny(NAME), original)]
    assert texts[0] == texts[1]
    placeholder = found.prompt_layout().placeholder_ids()["image"]
    assert found.prompt_layout().expand([placeholder], [MediaInfo(3)]).variant == "vision"
    shown = picture(1, (90, 60))
    features = [each.preprocessor().preprocess_image(shown, {}) for each in (known, found)]
    assert features[0].info == features[1].info
    rows = [each.tower(CPU, torch.float32).encode([features[0]])[0]["embeds"] for each in (known, found)]
    assert torch.equal(*rows)
    heard = features_of(known.preprocessor(), Recording(sound(1, 1.3)))
    rows = [each.tower(CPU, torch.float32).encode([heard])[0]["embeds"] for each in (known, found)]
    assert torch.equal(*rows)
    assert features_of(found.preprocessor(), Recording(sound(1, 1.3))).info == heard.info


def test_adapters_and_frequencies_are_the_same(original: Path, tiny: Build) -> None:
    models: list[Any] = [
        family_in(folder).language_model(CPU, torch.float32, "sdpa") for folder in (tiny(NAME), original)
    ]
    assert models[0].variants == models[1].variants == {"vision", "speech"}
    assert models[0].switch_length == models[1].switch_length
    embeds, positions = models[0].embed(torch.arange(7)), torch.arange(7)[None]
    for runs in (
        (),
        [RowRun(0, 7, "vision", False)],
        [RowRun(0, 7, "speech", False)],
        [RowRun(0, 3, "", False), RowRun(3, 4, "vision", True)],
    ):
        known, found = (model.forward(embeds, positions, runs=runs) for model in models)
        assert torch.equal(known, found)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"embd_layer": None}, "is not valid"),
        ({"hidden_size": "wide"}, "is not valid"),
        ({"vision_lora": 8}, "vision_lora is no JSON object"),
        ({"vision_lora": {"r": 8}}, "lora_alpha"),
        ({"vision_lora": {"r": 4, "lora_alpha": 8}}, r"shape \(4, 64\)"),
    ],
)
def test_a_wrong_configuration_is_explained(changes: dict[str, Any], reason: str, original: Path) -> None:
    edit(original, **changes)
    with pytest.raises(InvalidRequestError, match=reason):
        family_in(original).language_model(CPU, torch.float32, "sdpa")


@pytest.mark.parametrize(
    "lost",
    [
        "model.layers.1.mlp.down_proj.base_layer.weight",
        "model.layers.1.mlp.down_proj.lora_B.vision.weight",
    ],
)
def test_a_missing_tensor_is_named(lost: str, original: Path) -> None:
    file = original / WEIGHTS_FILE
    save_file({name: value for name, value in load_file(file).items() if name != lost}, file)
    with pytest.raises(InvalidRequestError, match=r"lacks.*layers\.1\.mlp\.down_proj"):
        family_in(original).language_model(CPU, torch.float32, "sdpa")


def test_without_adapters_named_in_the_configuration_prompts_are_plain(original: Path) -> None:
    edit(original, vision_lora=None)
    layout = family_in(original).prompt_layout()
    placeholder = layout.placeholder_ids()["image"]
    assert layout.expand([placeholder], [MediaInfo(3)]).variant == ""


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"extra_special_tokens": {"image_token": "<|picture|>"}}, "<|picture|>"),
        ({"image_token": "<|image|>"}, "<|image|>"),
        ({"added_tokens_decoder": {"IMAGE": {"content": "<|endoftext10|>"}}}, "<|endoftext10|>"),
        ({}, "<|endoftext10|>"),
    ],
)
def test_the_placeholders_text_is_the_tokenizers(settings: dict[str, Any], text: str, original: Path) -> None:
    image_id = str(json.loads((original / "config.json").read_text())["vision_config"]["image_token_id"])
    content = json.dumps(settings).replace("IMAGE", image_id)
    (original / "tokenizer_config.json").write_text(content)
    assert family_in(original).prompt_layout().placeholder_text("image") == text
