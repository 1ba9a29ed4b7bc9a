"""Adapters: the arithmetic, rows with and without, and files that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shared.checkpoint import read_checkpoint
from shared.errors import InvalidRequestError
from shared.families import load_family
from shared.families.base import RowRun
from shared.families.lora import AdaptedRows, attach_adapters
from shared.families.lora_files import CONFIG_FILE, WEIGHTS_FILE, adapter_in
from tests.unit.families.conftest import Build

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


class Two(nn.Module):
    """A model of two matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(8, 6)
        self.second = nn.Linear(6, 4, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(rows))
        return result


def write(folder: Path, model: nn.Module, targets: Any, rank: int = 3, **more: Any) -> Path:
    """An adapter for the layers that `targets` names by their whole names."""
    folder.mkdir()
    tensors = {}
    for name in ("first", "second"):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if targets == name or name in targets:
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, layer.in_features)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(layer.out_features, rank)
    save_file(tensors, folder / WEIGHTS_FILE)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "target_modules": targets, "bias": "none"}
    (folder / CONFIG_FILE).write_text(json.dumps(config | more))
    return folder


def merged(folder: Path, scale: float) -> Two:
    model = Two()
    for name, narrow in load_file(folder / WEIGHTS_FILE).items():
        if name.endswith("lora_A.weight"):
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            widen = load_file(folder / WEIGHTS_FILE)[name.replace("lora_A", "lora_B")]
            model.get_submodule(path).weight.data += scale * widen @ narrow  # type: ignore[operator]
    return model


@torch.no_grad()
def test_each_row_has_its_own_adapter(tmp_path: Path) -> None:
    model = Two()
    one = write(tmp_path / "one", model, ["first", "second"])
    other = write(tmp_path / "other", model, "second", rank=4, use_rslora=True)
    states = torch.randn(1, 9, 8)
    plain = model(states)
    chosen = attach_adapters(model, {"one": adapter_in(one), "other": adapter_in(other)})
    runs = [RowRun(0, 2, "one", False), RowRun(2, 1, "", False), RowRun(3, 4, "other", True)]
    runs += [RowRun(7, 1, "", False), RowRun(8, 1, "one", False)]
    chosen.choose(runs, CPU)
    made = model(states)[0]
    assert torch.equal(made[[2, 7]], plain[0, [2, 7]]), "rows of no adapter, to the bit"
    torch.testing.assert_close(made[[0, 1, 8]], merged(one, 6 / 3)(states)[0, [0, 1, 8]])
    torch.testing.assert_close(made[3:7], merged(other, 6 / 2)(states)[0, 3:7])
    chosen.choose([RowRun(0, 9, "one", False)], CPU)
    torch.testing.assert_close(model(states), merged(one, 6 / 3)(states))
    chosen.choose((), CPU)
    assert torch.equal(model(states), plain)


def test_rows_of_one_adapter_alone_need_no_index() -> None:
    rows = AdaptedRows()
    rows.choose([RowRun(0, 2, "one", False), RowRun(2, 5, "one", False)], CPU)
    assert rows.indexes == {"one": None}


def change_config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / CONFIG_FILE
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def change_tensors(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS_FILE)), folder / WEIGHTS_FILE)

    return changed


LAST = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"


def break_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"no tensors")


def lose_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()


def break_config(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("{")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_tensors(lambda all_: {n: all_[n] for n in all_ if n != LAST}), r"lacks: .*2\.mlp\.down_proj"),
        (
            change_tensors(lambda all_: all_ | {LAST.replace("2.mlp", "7.mlp"): torch.zeros(3)}),
            r"holds unknown weights: .*7\.mlp\.down_proj",
        ),
        (change_tensors(lambda all_: all_ | {LAST: all_[LAST][:-1].clone()}), r"shape \(64, 8\)"),
        (change_tensors(lambda all_: all_ | {LAST: all_[LAST].to(torch.int8)}), "holds torch.int8"),
        (change_config(peft_type="IA3"), "does not describe a LoRA adapter"),
        (change_config(use_dora=True), "use_dora = True are not supported"),
        (change_config(bias="all"), "bias = 'all' are not supported"),
        (change_config(rank_pattern={"o_proj": 2}), "rank_pattern"),
        (change_config(r=0), "needs a rank"),
        (change_config(r=4), r"shape \(4,"),
        (change_config(lora_alpha=None), "lora_alpha"),
        (change_config(target_modules="("), "target_modules"),
        (change_config(target_modules=None), "names no target_modules"),
        (break_weights, "no safetensors file"),
        (lose_weights, "holds no adapter_model.safetensors"),
        (break_config, "cannot be read"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    damage: Callable[[Path], None], reason: str, tiny: Build, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny("phi4_multimodal"), folder)
    damage(folder / "vision-lora")
    family = load_family(read_checkpoint(folder))
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        family.language_model(CPU, torch.float32, "sdpa")
    assert "vision-lora" in str(caught.value)
    family.tower(CPU, torch.float32)


def test_what_is_not_served_is_not_read(tiny: Build, tmp_path: Path) -> None:
    folder = tmp_path / "speechless"
    shutil.copytree(tiny("phi4_multimodal"), folder)
    shutil.rmtree(folder / "speech-lora")
    model: Any = load_family(read_checkpoint(folder)).language_model(CPU, torch.float32, "sdpa")
    assert model.variants == {"vision"}
