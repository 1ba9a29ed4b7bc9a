"""Towers on our CPU kernels give torch's rows, batch after batch."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from shared.checkpoint import read_checkpoint
from shared.families import load_family
from shared.families.base import Family, Features, Tower
from shared.kernels.build import built_library
from shared.kernels.library import Library, Team
from tests.unit.families.conftest import VARIANTS, Build

CPU = torch.device("cpu")
# To double precision; torch's own float32 is up to 7e-5 away from it on these weights.
TOLERANCE = 5e-5
# The tower of the one left out is llava's.
TOWERS = [
    *(name for name in VARIANTS if name != "llava_mistral"),
    "llava_pixtral",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "gemma3",
    "glm4v",
    "idefics3",
    "internvl",
    "llava_onevision",
    "mistral3",
    "qwen3_5",
    "qwen3_vl",
    "smolvlm",
]
GetFamily = Callable[[str], Family]


@pytest.fixture(scope="module")
def team(needs_compiler: None) -> Team:
    return Library(built_library()).make_team(2)


def on_kernels(family: Family, team: Team, dtype: torch.dtype = torch.float32) -> Tower:
    tower = family.tower(CPU, dtype)
    assert tower.use_kernels(team)
    return tower


def rows_of(tower: Tower, batch: Sequence[Features]) -> list[torch.Tensor]:
    return [made["embeds"] for made in tower.encode(batch)]


@pytest.mark.parametrize("variant", TOWERS)
def test_growing_and_shrinking_batches(
    variant: str, family: GetFamily, team: Team, pictures: list[Image.Image]
) -> None:
    """Pictures of different sizes, more of them and fewer: earlier batches leave nothing behind."""
    preprocessor = family(variant).preprocessor()
    features = [preprocessor.preprocess_image(picture, {}) for picture in pictures]
    tower, reference = on_kernels(family(variant), team), family(variant).tower(CPU, torch.float64)
    expected = [rows_of(reference, [each])[0].float() for each in features]
    for chosen in ([0], [1, 0], [3, 1, 2, 0, 3], [2], [0, 3], [1, 1, 1, 2, 2, 3, 3, 0], [0], [3]):
        rows = rows_of(tower, [features[index] for index in chosen])
        for got, index in zip(rows, chosen, strict=True):
            torch.testing.assert_close(got, expected[index], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("variant", TOWERS)
def test_results_are_the_callers_own(
    variant: str, family: GetFamily, team: Team, pictures: list[Image.Image]
) -> None:
    """Rows wait in a cache while the tower goes on."""
    preprocessor = family(variant).preprocessor()
    features = [preprocessor.preprocess_image(picture, {}) for picture in pictures]
    tower = on_kernels(family(variant), team)
    first = rows_of(tower, features)
    copies = [rows.clone() for rows in first]
    rows_of(tower, list(reversed(features)))
    assert all(torch.equal(rows, copy) for rows, copy in zip(first, copies, strict=True))


@pytest.mark.parametrize("variant", TOWERS)
def test_half_precision_is_as_close_as_torchs(
    variant: str, family: GetFamily, team: Team, pictures: list[Image.Image]
) -> None:
    features = [family(variant).preprocessor().preprocess_image(pictures[1], {})]
    exact = rows_of(family(variant).tower(CPU, torch.float32), features)[0]
    by_torch = rows_of(family(variant).tower(CPU, torch.bfloat16), features)[0]
    by_kernels = rows_of(on_kernels(family(variant), team, torch.bfloat16), features)[0]
    assert by_kernels.dtype == torch.bfloat16
    errors = [(rows.float() - exact).abs().mean() for rows in (by_kernels, by_torch)]
    assert 0 < errors[0] < 1.5 * errors[1]


def parameter_bytes(tower: Any) -> int:
    parameters = [*tower._module.parameters(), *tower._module.buffers()]
    return sum(each.untyped_storage().nbytes() for each in parameters)


@pytest.mark.parametrize("variant", TOWERS)
def test_weights_are_held_once(variant: str, family: GetFamily, team: Team) -> None:
    """The blocks' originals are let go."""
    tower: Any = family(variant).tower(CPU, torch.float32)
    before = parameter_bytes(tower)
    blocks = [name for name, each in tower._module.named_parameters() if each.dim() > 1 and _in_block(name)]
    held = sum(tower._module.get_parameter(name).nbytes for name in blocks)
    assert held > 0
    assert tower.use_kernels(team)
    assert parameter_bytes(tower) <= before - held


def _in_block(name: str) -> bool:
    """Of the blocks that are moved: the large one of DeepSeek's two towers stays with torch."""
    kinds = ("blocks.", "encoder.layers.", "encoder.layer.", "transformer.layers.")
    return not name.startswith("large.") and any(part in name for part in kinds)


ODD: list[tuple[str, dict[str, Any], str]] = [
    ("qwen2_vl", {"hidden_act": "mish"}, "the activation is mish"),
    ("qwen2_5_vl", {"hidden_act": "gelu"}, "the activation is gelu, of a gated layer"),
    ("qwen2_5_vl", {"intermediate_size": 49}, "a width is odd: 49"),
    ("llava", {"hidden_act": "mish"}, "the activation is mish"),
    ("llava", {"intermediate_size": 51}, "a width is odd: 51"),
    ("internvl", {"hidden_act": "mish"}, "the activation is mish"),
    ("internvl", {"use_qk_norm": True}, "queries and keys are normalised"),
]


@pytest.mark.parametrize(("variant", "changes", "reason"), ODD, ids=str)
def test_a_tower_that_does_not_fit_stays_with_torch(
    variant: str,
    changes: dict[str, Any],
    reason: str,
    tiny: Build,
    tmp_path: Path,
    team: Team,
    pictures: list[Image.Image],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It says why, and its rows are as before."""
    folder = tmp_path / "odd"
    shutil.copytree(tiny(variant), folder)
    change_vision(folder, changes)
    family = load_family(read_checkpoint(folder))
    features = [family.preprocessor().preprocess_image(pictures[0], {})]
    tower = family.tower(CPU, torch.bfloat16)
    before = rows_of(tower, features)[0]
    with caplog.at_level(logging.INFO):
        assert not tower.use_kernels(team)
    assert f"torch computes this tower: {reason}" in caplog.text
    assert torch.equal(rows_of(tower, features)[0], before)


def change_vision(folder: Path, changes: dict[str, Any]) -> None:
    """Another configuration of the tower, and new weights of its shapes."""
    config = AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config.vision_config, name, value)
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder)
