"""Experts in the layouts that checkpoints have: one model, whichever it is loaded from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.checkpoint import read_checkpoint
from shared.errors import InvalidRequestError
from shared.families import load_family
from shared.families.base import LanguageModel

CPU = torch.device("cpu")
NAME = "model.language_model.layers.0.mlp.experts.gate_up_proj"
STACKED = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")


def edited(source: Path, folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    changed = {name: change(name, tensor).contiguous() for name, tensor in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(folder: Path) -> LanguageModel:
    return load_family(read_checkpoint(folder)).language_model(CPU, torch.float32, "sdpa")


def turned(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(1, 2) if name.endswith(STACKED) else tensor


def test_both_ways_round(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    source = tiny("qwen3_vl_moe")
    other = edited(source, tmp_path / "turned", turned)
    shapes = [load_file(folder / "model.safetensors")[NAME].shape for folder in (source, other)]
    assert shapes[0] != shapes[1]
    one, two = load(source), load(other)
    embeds, positions = one.embed(torch.arange(7)), torch.arange(7).expand(3, 7)
    assert torch.equal(one.forward(embeds, positions), two.forward(embeds, positions))


def test_another_shape_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = edited(
        tiny("qwen3_vl_moe"), tmp_path / "short", lambda name, tensor: tensor[:-1] if name == NAME else tensor
    )
    with pytest.raises(InvalidRequestError, match=r"gate_up_proj has the shape .*config.json implies"):
        load(folder)
