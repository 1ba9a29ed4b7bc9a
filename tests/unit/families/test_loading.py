"""Finding checkpoints and loading halves: only their own tensors, and all of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from shared.checkpoint import find_checkpoint, read_checkpoint
from shared.errors import InvalidRequestError
from shared.families import load_family, supported_model_types
from shared.families.base import Family
from shared.families.load_progress import reporting_to
from shared.families.weights import check_finite
from tests.checkpoints import build_tiny
from tests.families.parts.names import newer_name, with_wrapped_tower

CPU = torch.device("cpu")
Build = Callable[[str], Path]


@pytest.fixture(autouse=True)
def tensors_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Collects the names of all tensors that are read from files."""
    names: set[str] = set()

    class Watched:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._file: Any = safetensors.safe_open(*args, **kwargs)

        def __enter__(self) -> Watched:
            self._file.__enter__()
            return self

        def __exit__(self, *details: Any) -> None:
            self._file.__exit__(*details)

        def get_tensor(self, name: str) -> torch.Tensor:
            names.add(name)
            tensor: torch.Tensor = self._file.get_tensor(name)
            return tensor

    monkeypatch.setattr("shared.families.weights.safe_open", Watched)
    yield names


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)
    return folder


def family_in(folder: Path) -> Family:
    return load_family(read_checkpoint(folder))


def load(folder: Path, half: str) -> dict[str, torch.Tensor]:
    """Loads a half and returns its parameters."""
    if half == "encoder":
        part: Any = family_in(folder).tower(CPU, torch.float32)
        return dict(part._module.named_parameters())
    part = family_in(folder).language_model(CPU, torch.float32, "sdpa")
    return dict(part._model.named_parameters()) | {"lm_head": part._output_weight}


def is_encoder(name: str) -> bool:
    return any(part in name for part in ("visual", "vision_tower", "multi_modal_projector"))


@pytest.mark.parametrize(
    "variant", ["qwen2_vl", "qwen2_5_vl", "llava", "llava_siglip_qwen2", "llava_mistral"]
)
@pytest.mark.parametrize("half", ["encoder", "language"])
def test_a_half_reads_its_own_tensors_alone(
    variant: str, half: str, tiny: Build, tensors_read: set[str]
) -> None:
    parameters = load(tiny(variant), half)
    stored = load_file(tiny(variant) / "model.safetensors")
    assert tensors_read == {name for name in stored if is_encoder(name) == (half == "encoder")}
    assert all(parameter.device.type == "cpu" for parameter in parameters.values())
    held = {parameter.data_ptr(): parameter.numel() for parameter in parameters.values()}
    assert sum(held.values()) == sum(stored[name].numel() for name in tensors_read)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_shards_are_as_good_as_one_file(model_type: Any, tiny: Build, tmp_path: Path) -> None:
    build_tiny(model_type, tmp_path, shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    for half in ("encoder", "language"):
        whole, sharded = load(tiny(model_type), half), load(tmp_path, half)
        assert whole.keys() == sharded.keys()
        assert all(torch.equal(whole[name], sharded[name]) for name in whole)


@pytest.mark.parametrize("variant", ["qwen2_vl", "qwen2_5_vl", "llava", "llava_siglip_qwen2"])
@pytest.mark.parametrize("rename", [newer_name, with_wrapped_tower])
def test_all_known_names(variant: str, rename: Callable[[str], str], tiny: Build, tmp_path: Path) -> None:
    folder = edit(
        copy(tiny(variant), tmp_path / "renamed"),
        lambda tensors: {rename(name): tensor for name, tensor in tensors.items()},
    )
    for half in ("encoder", "language"):
        expected, found = load(tiny(variant), half), load(folder, half)
        assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("half", ["encoder", "language"])
@pytest.mark.parametrize(
    ("variant", "encoder_name", "language_name"),
    [
        ("qwen2_vl", "visual.blocks.1.attn.qkv.weight", "model.layers.2.mlp.up_proj.weight"),
        ("llava", "multi_modal_projector.linear_2.bias", "language_model.lm_head.weight"),
    ],
)
def test_a_missing_tensor_is_named(
    variant: str, encoder_name: str, language_name: str, half: str, tiny: Build, tmp_path: Path
) -> None:
    lost = encoder_name if half == "encoder" else language_name
    folder = edit(
        copy(tiny(variant), tmp_path / "lacking"),
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != lost},
    )
    with pytest.raises(InvalidRequestError, match=f"lacks {half} weights: .*{lost.split('.')[-2]}"):
        load(folder, half)
    load(folder, "language" if half == "encoder" else "encoder")


def test_a_renamed_tensor_is_refused(tiny: Build, tmp_path: Path) -> None:
    def swap(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["visual.blocks.0.attn.qvk.weight"] = tensors.pop("visual.blocks.0.attn.qkv.weight")
        return tensors

    folder = edit(copy(tiny("qwen2_vl"), tmp_path / "renamed"), swap)
    with pytest.raises(InvalidRequestError, match=r"lacks encoder weights: blocks\.0\.attn\.qkv\.weight"):
        load(folder, "encoder")


@pytest.mark.parametrize(
    ("extra", "half", "reason"),
    [
        ("visual.blocks.7.norm1.weight", "encoder", r"holds unknown encoder weights: blocks\.7"),
        (
            "model.layers.9.mlp.up_proj.weight",
            "language",
            r"holds unknown language weights: model\.layers\.9",
        ),
        ("audio_tower.weight", "encoder", "audio_tower.weight, which belongs to no known part"),
        ("audio_tower.weight", "language", "audio_tower.weight, which belongs to no known part"),
    ],
)
def test_an_unknown_tensor_is_refused(
    extra: str, half: str, reason: str, tiny: Build, tmp_path: Path
) -> None:
    folder = edit(
        copy(tiny("qwen2_vl"), tmp_path / "more"), lambda tensors: tensors | {extra: torch.zeros(32)}
    )
    with pytest.raises(InvalidRequestError, match=reason):
        load(folder, half)


def test_computed_buffers_in_old_files_are_passed_over(tiny: Build, tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    folder = edit(copy(tiny("qwen2_vl"), tmp_path / "old"), lambda tensors: tensors | extra)
    model: Any = family_in(folder).language_model(CPU, torch.float32, "sdpa")
    assert model._model.rotary_emb.inv_freq[1] == pytest.approx(1e6 ** (-2 / 16))


@pytest.mark.parametrize("half", ["encoder", "language"])
def test_a_wrong_shape_is_refused(half: str, tiny: Build, tmp_path: Path) -> None:
    name = "visual.merger.mlp.0.bias" if half == "encoder" else "model.norm.weight"
    folder = edit(
        copy(tiny("qwen2_vl"), tmp_path / "short"),
        lambda tensors: tensors | {name: tensors[name][:-1].clone()},
    )
    with pytest.raises(InvalidRequestError, match=rf"{name} has the shape .*config.json implies"):
        load(folder, half)


def test_quantised_weights_are_refused(tiny: Build, tmp_path: Path) -> None:
    name = "model.norm.weight"
    folder = edit(
        copy(tiny("qwen2_vl"), tmp_path / "int8"),
        lambda tensors: tensors | {name: tensors[name].to(torch.int8)},
    )
    with pytest.raises(InvalidRequestError, match="quantised"):
        load(folder, "language")


def test_weights_beyond_their_element_type_are_refused() -> None:
    for number, dtype in ((float("inf"), torch.float32), (float("nan"), torch.bfloat16)):
        with pytest.raises(InvalidRequestError, match=r"^a has numbers that are not finite in (b?)float"):
            check_finite("a", torch.tensor([1.0, number], dtype=dtype))
    with pytest.raises(InvalidRequestError, match="--dtype is too narrow"):
        check_finite("a", torch.tensor([1.0, 1e5]).half())
    # Their sum is beyond float16; they are not.
    check_finite("a", torch.full((4,), 6e4).half())
    check_finite("a", torch.zeros(0))


@pytest.mark.parametrize("model_type", ["qwen2_vl", "llava"])
def test_tied_and_untied_outputs(model_type: Any, tmp_path: Path) -> None:
    tied = load(build_tiny(model_type, tmp_path / "tied", tie=True), "language")
    assert tied["lm_head"].data_ptr() == tied["embed_tokens.weight"].data_ptr()
    untied = load(build_tiny(model_type, tmp_path / "untied", tie=False), "language")
    assert not torch.equal(untied["lm_head"], untied["embed_tokens.weight"])


def test_an_output_layer_beside_a_tied_config_counts(tiny: Build, tmp_path: Path) -> None:
    own = torch.full((484, 64), 0.5)
    folder = edit(
        copy(tiny("qwen2_vl"), tmp_path / "both"), lambda tensors: tensors | {"lm_head.weight": own}
    )
    assert torch.equal(load(folder, "language")["lm_head"], own)


def test_dtype_is_the_one_asked_for(tiny: Build) -> None:
    for variant in ("qwen2_vl", "llava"):
        tower: Any = family_in(tiny(variant)).tower(CPU, torch.bfloat16)
        assert {parameter.dtype for parameter in tower._module.parameters()} == {torch.bfloat16}
        model: Any = family_in(tiny(variant)).language_model(CPU, torch.bfloat16, "sdpa")
        assert model._model.rotary_emb.inv_freq.dtype == torch.float32


def test_an_unsupported_family_is_named(tiny: Build, tmp_path: Path) -> None:
    folder = copy(tiny("qwen2_vl"), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    for found, text in (("bert", "is a 'bert' model"), (None, "names no model_type")):
        (folder / "config.json").write_text(json.dumps(config | {"model_type": found}))
        with pytest.raises(InvalidRequestError, match=text) as caught:
            family_in(folder)
        assert all(name in str(caught.value) for name in supported_model_types())


def test_an_unsupported_tower_is_named(tiny: Build, tmp_path: Path) -> None:
    folder = copy(tiny("llava"), tmp_path / "pixtral")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] = {"model_type": "vit", "hidden_size": 32, "image_size": 56, "patch_size": 14}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidRequestError, match="vit tower; llava is served with clip_vision_model"):
        load(folder, "encoder")


def break_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def list_json(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def bad_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")


def lost_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-2.safetensors"}})
    )


def outside_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../other/model.safetensors"}})
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_json, "is no JSON"),
        (list_json, "no JSON object"),
        (no_config, "no config.json"),
        (no_weights, "neither model.safetensors"),
        (bad_weights, "no safetensors file"),
        (lost_shard, "not in the folder"),
        (outside_shard, "not in the folder"),
    ],
)
def test_a_damaged_folder_is_explained(
    damage: Callable[[Path], None], reason: str, tiny: Build, tmp_path: Path
) -> None:
    folder = copy(tiny("qwen2_vl"), tmp_path / "damaged")
    damage(folder)
    with pytest.raises(InvalidRequestError, match=reason):
        find_checkpoint(str(folder))


def test_a_wrong_config_is_explained(tiny: Build, tmp_path: Path) -> None:
    folder = copy(tiny("qwen2_vl"), tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidRequestError, match=r"config.json is not valid"):
        load(folder, "language")


def test_a_missing_processor_is_explained(tiny: Build, tmp_path: Path) -> None:
    folder = copy(tiny("llava"), tmp_path / "blind")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InvalidRequestError, match="no usable image processor"):
        family_in(folder).preprocessor()


@pytest.mark.parametrize(
    ("variant", "change", "reason"),
    [
        ("qwen2_vl", {"patch_size": 16}, "has patch_size 16, the tower patch_size 14"),
        ("qwen2_vl", {"merge_size": 4}, "has merge_size 4, the tower spatial_merge_size 2"),
        (
            "llava",
            {"crop_size": {"height": 70, "width": 70}},
            "makes 70 x 70 pixels, the tower takes 56 x 56",
        ),
        ("llava", {"image_processor_type": "VideoMagic"}, "'VideoMagic', which has no PIL backend"),
        ("llava", {"image_processor_type": None}, "has no PIL backend"),
    ],
)
def test_a_processor_that_does_not_fit_is_explained(
    variant: str, change: dict[str, Any], reason: str, tiny: Build, tmp_path: Path
) -> None:
    folder = copy(tiny(variant), tmp_path / "misfit")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InvalidRequestError, match=reason):
        family_in(folder).preprocessor()


def hub_style(config: dict[str, Any]) -> dict[str, Any]:
    """A Qwen2-VL config.json as the hub has it: flat, with the older names."""
    text: dict[str, Any] = config.pop("text_config")
    rope = text.pop("rope_parameters")
    for name in ("model_type", "layer_types", "dtype"):
        text.pop(name)
    kept = ("depth", "embed_dim", "mlp_ratio", "num_heads", "hidden_size", "patch_size", "spatial_merge_size")
    vision = {name: config["vision_config"][name] for name in kept}
    older: dict[str, Any] = {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "vision_config": vision | {"in_chans": 3, "spatial_patch_size": 14, "temporal_patch_size": 2},
        "torch_dtype": "bfloat16",
    }
    return config | text | older


def test_a_flat_config_of_the_hub(tiny: Build, tmp_path: Path) -> None:
    folder = copy(tiny("qwen2_vl"), tmp_path / "flat")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(hub_style(config)))
    assert "text_config" not in json.loads((folder / "config.json").read_text())
    parts, expected = family_in(folder), family_in(tiny("qwen2_vl"))
    assert (parts.hidden_size(), parts.context_length()) == (64, 2048)
    assert parts.prompt_layout() == expected.prompt_layout()
    found: Any = parts.language_model(CPU, torch.float32, "sdpa")
    known: Any = expected.language_model(CPU, torch.float32, "sdpa")
    positions = torch.arange(5).expand(3, 5)
    embeds = known.embed(torch.arange(5))
    assert torch.equal(found.forward(embeds, positions), known.forward(embeds, positions))


@pytest.mark.parametrize("name", ["/nowhere/at/all", "no such name", "one", "../up/and/away"])
def test_no_such_checkpoint(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="Hugging Face id"):
        find_checkpoint(name)


def test_a_file_is_no_checkpoint(tiny: Build) -> None:
    with pytest.raises(InvalidRequestError, match="is a file"):
        find_checkpoint(str(tiny("qwen2_vl") / "config.json"))


def test_a_hub_id_is_fetched_without_code(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(tiny("qwen2_vl"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert find_checkpoint("someone/some-model").folder == tiny("qwen2_vl")
    assert asked["name"] == "someone/some-model"
    assert not {"*.py", "*.bin", "*"} & set(asked["patterns"])


def test_an_unreachable_hub_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InvalidRequestError, match="someone/some-model could not be fetched"):
        find_checkpoint("someone/some-model")


def test_whoever_waits_hears_how_far_it_is(tiny_checkpoint: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_family(find_checkpoint(str(tiny_checkpoint("qwen2_vl"))))
    monkeypatch.setattr("shared.families.load_progress.INTERVAL_S", 0.0)
    heard: list[float] = []
    with reporting_to(heard.append):
        family.tower(CPU, torch.float32)
    assert len(heard) > 10
    assert heard == sorted(set(heard))
    assert heard[0] > 0 and heard[-1] == 1
    monkeypatch.setattr("shared.families.load_progress.INTERVAL_S", 3600.0)
    with reporting_to(heard.append):
        family.tower(CPU, torch.float32)
    assert heard[-1] == 1 and heard.count(1) == 1, "more often than it was asked for"
