"""Qwen3.5: what its layers keep, and what its checkpoints hold beside the two halves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.checkpoint import read_checkpoint
from shared.errors import InvalidRequestError
from shared.families import load_family
from shared.families.base import KvLayout, StateShape
from tests.unit.families.conftest import Build

CPU = torch.device("cpu")


def with_tensor(source: Path, folder: Path, name: str) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors") | {name: torch.ones(3)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(folder: Path) -> Any:
    return load_family(read_checkpoint(folder)).language_model(CPU, torch.bfloat16, "sdpa")


def test_only_full_attention_has_keys_and_values(tiny: Build) -> None:
    model = load(tiny("qwen3_5"))
    assert model.kv_layout == KvLayout(layer_count=2, kv_head_count=2, head_dim=32)
    assert dict(model.state_shapes) == {
        "convolution": StateShape(3, (2 * 2 * 16 + 4 * 8, 4), exact=False),
        "recurrent": StateShape(3, (4, 16, 8), exact=True),
    }


def test_layers_that_foretell_are_left_alone(tiny: Build, tmp_path: Path) -> None:
    source = tiny("qwen3_5")
    folder = with_tensor(source, tmp_path / "mtp", "mtp.layers.0.mlp.up_proj.weight")
    one, two = load(source), load(folder)
    embeds, positions = one.embed(torch.arange(6)), torch.arange(6).expand(3, 6)
    assert torch.equal(one.forward(embeds, positions), two.forward(embeds, positions))
    load_family(read_checkpoint(folder)).tower(CPU, torch.float32)


def test_other_tensors_are_refused(tiny: Build, tmp_path: Path) -> None:
    folder = with_tensor(tiny("qwen3_5"), tmp_path / "odd", "model.language_model.layers.0.linear_attn.more")
    with pytest.raises(InvalidRequestError, match=r"unknown language weights: .*linear_attn\.more"):
        load(folder)
