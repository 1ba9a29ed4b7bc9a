"""Phi-4-multimodal: tiles by setting, recordings alone and beside pictures, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.checkpoint import read_checkpoint
from shared.errors import BadEmbeddingsError, BadMediaError, InvalidRequestError
from shared.families import load_family
from shared.families.base import AudioClip, Family, Grid, Hears, MediaInfo, RawTensor
from shared.families.dynamic_hd import Tiling
from tests.asking import picture, sound
from tests.families.phi4_multimodal import CASE
from tests.oracle import Oracle
from tests.unit.families.conftest import Build

CPU = torch.device("cpu")
NAME = "phi4_multimodal"
GetFamily = Callable[[str], Family]
SIZES = [(64, 64), (65, 64), (300, 60), (60, 300), (500, 500), (333, 222), (200, 250), (250, 200), (70, 400)]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7])
def test_settings_give_the_processors_tiles(most: int, tiny: Build, tmp_path: Path, oracle: Oracle) -> None:
    """Whatever the most tiles are, to the bit; small and large of one shape differ."""
    folder = tmp_path / "more"
    shutil.copytree(tiny(NAME), folder)
    change_processor(folder, {"dynamic_hd": 7})
    parts = load_family(read_checkpoint(folder))
    preprocessor, tower = parts.preprocessor(), parts.tower(CPU, torch.float32)
    for seed, size in enumerate(SIZES):
        shown = picture(seed, size)
        answer = oracle.ask(
            CASE, folder, "<|image|>", [shown], inputs=True, processor_arguments={"dynamic_hd": most}
        )
        for name in ("dynamic_hd", "num_crops"):
            features = preprocessor.preprocess_image(shown, {name: most})
        assert CASE.tower_pixels is not None
        for name, array in CASE.tower_pixels(tower, features).items():
            np.testing.assert_array_equal(array, answer.inputs[name][0], err_msg=f"{size} {name}")
        assert features.info.row_count == sum(token == image_id(folder) for token in answer.prompt_ids)


def test_the_hubs_numbers() -> None:
    """A tile of 448 pixels has 16 x 16 cells."""
    tiling = Tiling(448, 14)
    assert tiling.row_count((16, 16)) == 256 + 16 + 1 + 256 + 16
    assert tiling.count_tiles((1344, 896), 36) == (3, 2)
    assert tiling.count_tiles((10000, 10000), 36) == (6, 6)
    assert tiling.count_tiles((448, 448), 36) == (1, 1)
    assert tiling.most_rows(36) == 36 * 16 * 17 + 273


@pytest.mark.parametrize("odd", [15, 21])
def test_cells_of_an_odd_number_of_patches(odd: int) -> None:
    """They begin anew in each tile."""
    tiling = Tiling(odd * 2, 2)
    for seen in range(1, 3 * odd + 1):
        expected = sum(patch % odd % 2 == 0 for patch in range(seen))
        assert tiling._cells_of(seen) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"dynamic_hd": 0},
        {"dynamic_hd": 5},
        {"num_crops": 2.0},
        {"num_crops": True},
        {"num_crops": "2"},
        {"max_pixels": 3136},
    ],
)
def test_other_settings_are_refused(settings: dict[str, Any], family: GetFamily) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(settings))):
        family(NAME).preprocessor().preprocess_image(Image.new("RGB", (60, 60)), settings)


def test_the_smaller_of_two_settings_counts(family: GetFamily) -> None:
    preprocessor, shown = family(NAME).preprocessor(), Image.new("RGB", (300, 300))
    for settings in ({"dynamic_hd": 1, "num_crops": 4}, {"dynamic_hd": 4, "num_crops": 1}):
        assert preprocessor.preprocess_image(shown, settings).info.grids == (Grid(1, 1, 1),)


@pytest.mark.parametrize("size", [(1, 60), (60, 1), (8, 400), (1, 5000)])
def test_a_thin_picture_is_refused(size: tuple[int, int], family: GetFamily) -> None:
    with pytest.raises(BadMediaError):
        family(NAME).preprocessor().preprocess_image(Image.new("RGB", size), {})


@pytest.mark.parametrize("rows", [1, 273, 274, 4 * 16 * 17 + 274])
def test_rows_that_no_picture_has_are_refused(rows: int, family: GetFamily) -> None:
    tensor = RawTensor("float32", (rows, 64), bytes(rows * 64 * 4))
    with pytest.raises(BadEmbeddingsError, match=f"has {rows} rows; .* 275 to 1361"):
        family(NAME).preprocessor().accept_embeddings("image", {"image_embeds": tensor})


def test_prompts_with_pictures_have_the_adapter(family: GetFamily) -> None:
    for variant, expected in ((NAME, "vision"), (f"{NAME}_without_adapters", "")):
        layout = family(variant).prompt_layout()
        placeholder = layout.placeholder_ids()["image"]
        assert layout.expand([1, placeholder], [MediaInfo(3)]).variant == expected
        assert layout.expand([1, 2], []).variant == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": {"height": 32, "width": 32}}, "the tower takes 64 pixels"),
        ({"size": {"height": 64, "width": 32}}, "the tower takes 64 pixels"),
        ({"patch_size": 4}, "patches of 4 pixels"),
        ({"dynamic_hd": 0}, "dynamic_hd is 0"),
        ({"image_processor_type": "CLIPImageProcessor"}, "not Phi-4's"),
        ({"resample": 5}, "filter 5"),
    ],
)
def test_a_processor_that_does_not_fit_is_explained(
    change: dict[str, Any], reason: str, tiny: Build, tmp_path: Path
) -> None:
    folder = tmp_path / "misfit"
    shutil.copytree(tiny(NAME), folder)
    change_processor(folder, change)
    parts = load_family(read_checkpoint(folder))
    with pytest.raises(InvalidRequestError, match=reason):
        parts.preprocessor()
    with pytest.raises(InvalidRequestError, match=reason):
        parts.tower(CPU, torch.float32)


def change_processor(folder: Path, change: dict[str, Any]) -> None:
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def image_id(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    return int(config["vision_config"]["image_token_id"])


def test_recordings_alone_and_beside_pictures(family: GetFamily) -> None:
    """Each has an adapter of its own, and a projection, which a setting chooses."""
    parts = family(NAME)
    layout, preprocessor = parts.prompt_layout(), parts.preprocessor()
    ids = layout.placeholder_ids()
    media = [MediaInfo(3), MediaInfo(2)]
    assert layout.expand([ids["audio"]], media[:1]).variant == "speech"
    both = layout.expand([ids["audio"], 5, ids["image"]], media)
    assert both.variant == "vision"
    assert both.token_ids == [*[ids["audio"]] * 3, 5, *[ids["image"]] * 2]
    clip = AudioClip(sound(1, 1.0), 16_000)
    assert isinstance(preprocessor, Hears)
    made = [
        preprocessor.preprocess_audio(clip, settings)
        for settings in ({}, {"audio_projection_mode": "speech"}, {"audio_projection_mode": "vision"})
    ]
    alone, the_same, beside = (rows["embeds"] for rows in parts.tower(CPU, torch.float32).encode(made))
    assert torch.equal(alone, the_same)
    assert not torch.allclose(alone, beside, atol=0.1)


@pytest.mark.parametrize(("count", "fits"), [(1, False), (399, False), (400, True)])
def test_the_shortest_recording_is_a_frame(count: int, fits: bool, family: GetFamily) -> None:
    preprocessor = family(NAME).preprocessor()
    assert isinstance(preprocessor, Hears)
    clip = AudioClip(sound(1, 1.0)[:count], 16_000)
    if fits:
        assert preprocessor.preprocess_audio(clip, {}).info.row_count == 1
        return
    with pytest.raises(BadMediaError, match="too short"):
        preprocessor.preprocess_audio(clip, {})
