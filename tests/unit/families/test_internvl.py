"""What is InternVL's own: numbers of tiles, the words before frames, and files that do not fit together."""

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
from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families import load_family
from shared.families.base import Family, Features, Grid, MediaInfo, VideoClip
from shared.families.internvl import InternVLLayout
from shared.torch_tensors import to_raw
from tests.asking import moving_picture, picture
from tests.families import all_cases
from tests.laying_out import Layouter
from tests.oracle import Oracle, Video
from tests.unit.families.conftest import Build

CPU = torch.device("cpu")
TOLERANCE = 2e-5
NAME = "internvl"
ROWS = 4
"""Of a tile."""

GetFamily = Callable[[str], Family]


def clip_of(frames: np.ndarray[Any, np.dtype[np.uint8]]) -> VideoClip:
    return VideoClip(frames, tuple(range(len(frames))), len(frames), 2.0)


@pytest.mark.parametrize(
    ("settings", "in_transformers", "tiles"),
    [
        ({}, {}, 7),
        ({"max_dynamic_patch": 3}, {"max_patches": 3}, 3),
        ({"max_dynamic_patch": 1}, {"max_patches": 1}, 1),
        ({"min_dynamic_patch": 4, "max_dynamic_patch": 5}, {"min_patches": 4, "max_patches": 5}, 5),
        ({"crop_to_patches": False}, {"crop_to_patches": False}, 1),
    ],
    ids=str,
)
def test_settings_give_the_processors_tiles(
    settings: dict[str, Any],
    in_transformers: dict[str, Any],
    tiles: int,
    tiny: Build,
    family: GetFamily,
    oracle: Oracle,
) -> None:
    shown, text = picture(3, (120, 80)), "look: <IMG_CONTEXT>\nwhat is it?"
    answer = oracle.ask(
        all_cases()[NAME], tiny(NAME), text, [shown], inputs=True, processor_arguments=in_transformers
    )
    features = family(NAME).preprocessor().preprocess_image(shown, settings)
    np.testing.assert_array_equal(features.arrays["pixel_values"], answer.inputs["pixel_values"])
    assert features.info == MediaInfo(tiles * ROWS, (Grid(1, 1, tiles),), (80, 120))
    assert Layouter(tiny(NAME)).lay_out(text, [features.info]).token_ids == answer.prompt_ids


@pytest.mark.parametrize("size", [(1, 1), (3, 60), (60, 3), (3, 3), (1, 150), (4, 4)])
def test_odd_sizes(size: tuple[int, int], tiny: Build, family: GetFamily, oracle: Oracle) -> None:
    """Sides of 1, 3 or 4 could be taken for colour channels: a red picture stays red."""
    shown = Image.new("RGB", size, (255, 0, 0))
    pixels = family(NAME).preprocessor().preprocess_image(shown, {}).arrays["pixel_values"]
    red, green, blue = pixels.mean(axis=(0, 2, 3))
    assert red > 1
    assert green < -1
    assert blue < -1
    answer = oracle.ask(all_cases()[NAME], tiny(NAME), "<IMG_CONTEXT>", [shown], inputs=True)
    np.testing.assert_array_equal(pixels, answer.inputs["pixel_values"])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_dynamic_patch": 7}, "max_dynamic_patch is a whole number from 1 to 6"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch is a whole number from 1 to 6"),
        ({"max_dynamic_patch": True}, "max_dynamic_patch is a whole number"),
        ({"min_dynamic_patch": "2"}, "min_dynamic_patch is a whole number"),
        ({"min_dynamic_patch": 3, "max_dynamic_patch": 2}, "here 3, is at most max_dynamic_patch, here 2"),
        ({"crop_to_patches": 1}, "crop_to_patches is true or false"),
        ({"num_crops": 4}, "unknown processor setting 'num_crops'"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings: dict[str, Any], reason: str, family: GetFamily) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        family(NAME).preprocessor().preprocess_image(picture(0, (60, 60)), settings)


def test_a_video_has_no_settings(family: GetFamily) -> None:
    clip = clip_of(moving_picture(1, (28, 28), 2))
    with pytest.raises(InvalidRequestError, match="'max_dynamic_patch'"):
        family(NAME).preprocessor().preprocess_video(clip, {"max_dynamic_patch": 1})


@pytest.mark.parametrize(("frames", "size"), [(1, (28, 28)), (4, (28, 28)), (3, (100, 40)), (2, (12, 20))])
def test_pixels_of_frames(
    frames: int, size: tuple[int, int], tiny: Build, family: GetFamily, oracle: Oracle
) -> None:
    """They are equal to the bit, resized or not."""
    shown = moving_picture(1, size, frames)
    answer = oracle.ask(all_cases()[NAME], tiny(NAME), "<video>", [Video(shown, fps=2.0)], inputs=True)
    tower: Any = family(NAME).tower(CPU, torch.float32)
    features = family(NAME).preprocessor().preprocess_video(clip_of(shown), {})
    np.testing.assert_array_equal(tower._pixels(features).numpy(), answer.inputs["pixel_values"])


def test_a_picture_between_two_videos(tiny: Build, family: GetFamily, oracle: Oracle) -> None:
    text = "first <video>\nthen <IMG_CONTEXT>\nand <video>\ncompare"
    # transformers stacks videos, so both have one length.
    videos = [Video(moving_picture(seed, (40, 32), 3), fps=2.0) for seed in (1, 2)]
    shown = picture(3, (112, 84))
    answer = oracle.ask(all_cases()[NAME], tiny(NAME), text, [videos[0], shown, videos[1]], rows=True)
    preprocessor, tower = family(NAME).preprocessor(), family(NAME).tower(CPU, torch.float32)
    features = [
        preprocessor.preprocess_video(clip_of(videos[0].frames), {}),
        preprocessor.preprocess_image(shown, {}),
        preprocessor.preprocess_video(clip_of(videos[1].frames), {}),
    ]
    prompt = Layouter(tiny(NAME)).lay_out(text, [each.info for each in features])
    assert prompt.token_ids == answer.prompt_ids
    assert [(span.item, span.first_row) for span in prompt.spans] == [
        *((0, ROWS * frame) for frame in range(3)),
        (1, 0),
        *((2, ROWS * frame) for frame in range(3)),
    ]
    rows = np.concatenate([made["embeds"].numpy() for made in tower.encode(features)])
    np.testing.assert_allclose(rows, np.concatenate(answer.rows), atol=TOLERANCE, rtol=TOLERANCE)


def test_parts_give_the_rows_of_the_whole(family: GetFamily) -> None:
    preprocessor, tower = family(NAME).preprocessor(), family(NAME).tower(CPU, torch.float32)
    batch = [
        preprocessor.preprocess_image(picture(1, (60, 140)), {}),
        preprocessor.preprocess_video(clip_of(moving_picture(1, (40, 30), 40)), {}),
        preprocessor.preprocess_video(clip_of(moving_picture(2, (30, 40), 2)), {}),
    ]
    assert [len(tower.split(each)) for each in batch] == [1, 3, 1]
    for features, together in zip(batch, tower.encode(batch), strict=True):
        parts: list[Features] = tower.split(features)
        assert sum(part.token_cost for part in parts) == features.token_cost
        rows = [tower.encode([part])[0]["embeds"] for part in parts]
        assert [len(each) for each in rows] == [part.info.row_count for part in parts]
        torch.testing.assert_close(torch.cat(rows), together["embeds"], atol=TOLERANCE, rtol=TOLERANCE)


def test_places_and_rows_that_do_not_fit_are_refused() -> None:
    layout = InternVLLayout(9)
    two_frames = MediaInfo(4, (Grid(2, 1, 1),))
    assert layout.item_text("video", two_frames) == (
        "Frame1: <img><IMG_CONTEXT></img>\nFrame2: <img><IMG_CONTEXT></img>"
    )
    with pytest.raises(InvalidRequestError, match="1 places for 2 pictures, tiles or frames"):
        layout.expand([1, 9], [two_frames])
    with pytest.raises(InvalidRequestError, match="item 0 has 3 rows in 2 frames"):
        layout.expand([9, 9], [MediaInfo(3, (Grid(2, 1, 1),))])
    with pytest.raises(InvalidRequestError, match="item 0 has 3 rows in 0 frames"):
        layout.expand([9], [MediaInfo(3)])


@pytest.mark.parametrize(("modality", "grid"), [("image", Grid(1, 1, 3)), ("video", Grid(3, 1, 1))])
def test_precomputed_embeddings(modality: Any, grid: Grid, family: GetFamily) -> None:
    preprocessor, name = family(NAME).preprocessor(), f"{modality}_embeds"
    item = preprocessor.accept_embeddings(modality, {name: to_raw(torch.ones(3 * ROWS, 64))})
    assert item.info == MediaInfo(3 * ROWS, (grid,))
    for rows in (1, ROWS - 1, 2 * ROWS + 1):
        with pytest.raises(BadEmbeddingsError, match=f"has {rows} rows; each .* of this model has {ROWS}"):
            preprocessor.accept_embeddings(modality, {name: to_raw(torch.ones(rows, 64))})


def changed(source: Path, target: Path, file: str, part: str | None, **values: Any) -> Family:
    """The family of a copy with other values in one of its files, or in a part of it."""
    shutil.copytree(source, target)
    content = json.loads((target / file).read_text())
    (content[part] if part else content).update(values)
    (target / file).write_text(json.dumps(content))
    return load_family(read_checkpoint(target))


SIZE = {"height": 56, "width": 56}


@pytest.mark.parametrize(
    ("file", "part", "values", "reason"),
    [
        ("config.json", None, {"vision_feature_select_strategy": "full"}, "strategy is 'full'"),
        ("config.json", None, {"vision_feature_layer": [-2, -1]}, "it names one layer"),
        ("config.json", None, {"downsample_ratio": 0.3}, "cannot be downsampled by 0.3"),
        ("config.json", "vision_config", {"image_size": [28, 42]}, "42 x 28 pixels .* cannot be"),
        ("config.json", "vision_config", {"patch_size": [4, 4]}, "in patches of 4 x 4 cannot be"),
        ("config.json", "text_config", {"model_type": "gpt_oss"}, "text_config.model_type is 'gpt_oss'"),
        ("preprocessor_config.json", None, {"size": SIZE}, "makes 56 x 56 pixels, the tower takes 28 x 28"),
        ("video_preprocessor_config.json", None, {"size": SIZE}, "takes frames of 28 x 28"),
        ("video_preprocessor_config.json", None, {"do_resize": False}, "takes frames of 28 x 28"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    file: str, part: str | None, values: dict[str, Any], reason: str, tiny: Build, tmp_path: Path
) -> None:
    family = changed(tiny(NAME), tmp_path / "changed", file, part, **values)
    with pytest.raises(InvalidRequestError, match=reason):
        family.preprocessor()
    if file == "config.json" and reason.startswith(("strategy", "it names", "text_config")):
        for load in (
            lambda: family.tower(CPU, torch.float32),
            lambda: family.language_model(CPU, torch.float32, "sdpa"),
        ):
            with pytest.raises(InvalidRequestError, match=reason):
                load()


def test_rows_of_an_inner_layer(tiny: Build, oracle: Oracle, tmp_path: Path) -> None:
    inner = changed(tiny(NAME), tmp_path / "inner", "config.json", None, vision_feature_layer=-2)
    shown = picture(1, (60, 60))
    answer = oracle.ask(all_cases()[NAME], tmp_path / "inner", "<IMG_CONTEXT>", [shown], rows=True)
    features = inner.preprocessor().preprocess_image(shown, {})
    (made,) = inner.tower(CPU, torch.float32).encode([features])
    expected = np.concatenate(answer.rows)
    np.testing.assert_allclose(made["embeds"].numpy(), expected, atol=TOLERANCE, rtol=TOLERANCE)
    (last,) = load_family(read_checkpoint(tiny(NAME))).tower(CPU, torch.float32).encode([features])
    assert (made["embeds"] - last["embeds"]).abs().max() > 0.05
