"""Every family: each half loads from disk without the other, all of it, and nothing else passes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.checkpoint import INDEX_FILE, WEIGHTS_FILE, read_checkpoint
from shared.errors import InvalidRequestError
from shared.families import load_family
from shared.families.base import Family
from tests.families import all_cases
from tests.families.case import FamilyCase
from tests.unit.families.conftest import EVERY, Build
from tests.unit.families.parameters import HALVES, load

CASES = all_cases()
REMOVED_COUNT = 4

Tensors = dict[str, torch.Tensor]


def family_in(folder: Path) -> Family:
    return load_family(read_checkpoint(folder))


def owner(case: FamilyCase, name: str) -> str:
    if name.startswith(case.unread_names):
        return "nobody"
    return "encoder" if name.startswith(case.encoder_names) else "language"


def copy_without_weights(source: Path, target: Path) -> Path:
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns("model*.safetensors", INDEX_FILE))


def edited(source: Path, target: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of the checkpoint with other tensors."""
    copy_without_weights(source, target)
    save_file(change(load_file(source / WEIGHTS_FILE)), target / WEIGHTS_FILE)
    return target


def without(lost: str, tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != lost}


def with_extra(extra: str, tensors: Tensors) -> Tensors:
    return tensors | {extra: torch.zeros(3)}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("variant", EVERY)
def test_a_half_reads_no_byte_of_the_other(variant: str, half: str, tiny: Build, tmp_path: Path) -> None:
    """In two files for each half, those of the other half without a byte."""
    case, _ = EVERY[variant]
    folder = copy_without_weights(tiny(variant), tmp_path / "halves")
    stored = load_file(tiny(variant) / WEIGHTS_FILE)
    files = {name: f"{owner(case, name)}-{index % 2}.safetensors" for index, name in enumerate(stored)}
    for file in set(files.values()):
        save_file({name: stored[name] for name in stored if files[name] == file}, folder / file)
        if not file.startswith(half):
            (folder / file).write_bytes(b"")
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": files}))

    alone, whole = load(family_in(folder), half), load(family_in(tiny(variant)), half)
    assert alone.keys() == whole.keys()
    assert all(torch.equal(alone[name], whole[name]) for name in whole)
    held = sum(parameter.numel() for parameter in alone.values())
    own = [name for name in stored if owner(case, name) == half and not name.endswith(case.buffer_ends)]
    assert held == sum(stored[name].numel() for name in own)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("model_type", CASES)
def test_every_parameter_is_the_checkpoints(model_type: str, half: str, tiny: Build, tmp_path: Path) -> None:
    """None is random, which would differ between loads, and none is left as the class makes it."""
    other = CASES[model_type].build(tmp_path, seed=1, shard_size="60KB")
    assert len(list(other.glob("*.safetensors"))) > 2
    first, again = (load(family_in(tiny(model_type)), half) for _ in range(2))
    changed = load(family_in(other), half)
    assert first.keys() == again.keys() == changed.keys()
    assert [name for name in first if not torch.equal(first[name], again[name])] == []
    assert [name for name in first if torch.equal(first[name], changed[name])] == []


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("model_type", CASES)
def test_a_missing_tensor_is_refused_by_name(model_type: str, half: str, tiny: Build, tmp_path: Path) -> None:
    case, folder = CASES[model_type], tiny(model_type)
    names = sorted(name for name in load_file(folder / WEIGHTS_FILE) if owner(case, name) == half)
    other = next(each for each in HALVES if each != half)
    for index, lost in enumerate(random.Random(model_type).sample(names, REMOVED_COUNT)):
        lacking = edited(
            folder,
            tmp_path / str(index),
            lambda tensors, lost=lost: {n: tensors[n] for n in tensors if n != lost},
        )
        with pytest.raises(InvalidRequestError, match="lacks") as caught:
            load(family_in(lacking), half)
        # The model's own name for it, which may begin in another way.
        assert ".".join(lost.split(".")[-2:]) in str(caught.value)
        load(family_in(lacking), other)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("model_type", CASES)
def test_an_extra_tensor_is_refused_by_name(model_type: str, half: str, tiny: Build, tmp_path: Path) -> None:
    case, folder = CASES[model_type], tiny(model_type)
    names = sorted(name for name in load_file(folder / WEIGHTS_FILE) if owner(case, name) == half)
    stem, last = max(names, key=lambda name: name.count(".")).rsplit(".", 1)
    for index, extra in enumerate([f"{stem}_more.{last}", "of_no_part.weight"]):
        more = edited(folder, tmp_path / str(index), partial(with_extra, extra))
        with pytest.raises(InvalidRequestError) as caught:
            load(family_in(more), half)
        assert ".".join(extra.split(".")[-2:]) in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "index"),
    [(name, index) for name, case in CASES.items() for index in range(len(case.other_names))],
)
def test_other_layouts_of_names(model_type: str, index: int, tiny: Build, tmp_path: Path) -> None:
    rename = CASES[model_type].other_names[index]
    folder = edited(
        tiny(model_type),
        tmp_path / "renamed",
        lambda tensors: {rename(name): tensor for name, tensor in tensors.items()},
    )
    assert load_file(folder / WEIGHTS_FILE).keys() != load_file(tiny(model_type) / WEIGHTS_FILE).keys()
    for half in HALVES:
        expected, found = load(family_in(tiny(model_type)), half), load(family_in(folder), half)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
