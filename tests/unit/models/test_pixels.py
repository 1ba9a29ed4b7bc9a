"""Pixels for training equal what the checkpoint's image processor makes, and cells are labelled rightly."""

import random

import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models.training.drawing import draw
from models.training.pixels import (
    MAX_PIXELS,
    MERGE,
    MIN_PIXELS,
    MOST_CELLS,
    NORMAL_MEAN,
    NORMAL_STD,
    PATCH,
    cell_labels,
    grid_of,
    patches,
)
from models.training.scenes import SHAPES, Scene, number_scene, shapes_scene

SCENES = [(number_scene if seed % 3 == 0 else shapes_scene)(random.Random(seed)) for seed in range(30)]


@pytest.fixture(scope="module")
def processor() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        image_mean=list(NORMAL_MEAN),
        image_std=list(NORMAL_STD),
    )


@pytest.mark.parametrize("scene", SCENES)
def test_patches_equal_the_processor(scene: Scene, processor: Qwen2VLImageProcessorPil) -> None:
    picture = draw(scene)
    wanted = processor(picture, return_tensors="np")
    ours = patches(picture).astype(np.float32).reshape(-1, 3, 1, PATCH * PATCH) / 127.5 - 1
    twice = np.broadcast_to(ours, (len(ours), 3, 2, PATCH * PATCH)).reshape(len(ours), -1)
    np.testing.assert_allclose(twice, wanted["pixel_values"], atol=1e-6)
    rows, columns = grid_of(*picture.size)
    assert wanted["image_grid_thw"].tolist() == [[1, rows * MERGE, columns * MERGE]]


def test_every_picture_fits_the_training_grid() -> None:
    grids = [
        grid_of(scene.width, scene.height) for scene in map(shapes_scene, map(random.Random, range(500)))
    ]
    assert max(rows * columns for rows, columns in grids) <= MOST_CELLS
    assert len(set(grids)) > 4


@pytest.mark.parametrize("scene", SCENES)
def test_cells_name_every_thing_once(scene: Scene) -> None:
    labels = cell_labels(scene)
    centres = sorted(int(kind) for kind in labels.kind[labels.centre > 0])
    if scene.number is None:
        assert centres == sorted(1 + SHAPES.index(thing.shape) for thing in scene.things)
    else:
        digits = {1 + len(SHAPES) + int(digit) for digit in scene.number.text}
        assert set(centres) <= digits
    assert (labels.kind > 0).sum() == (labels.colour > 0).sum()
