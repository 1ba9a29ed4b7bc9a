"""Sizes, counts and rows of any-resolution pictures equal transformers', on canvases of real checkpoints."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlavaNextConfig, LlavaOnevisionConfig
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next import modeling_llava_next
from transformers.models.llava_onevision import modeling_llava_onevision

from shared.families.anyres import Canvases, canvases
from shared.families.tile_packing import pack_tiles

WIDTH = 2
SIZES = [(1, 1), (1, 150), (150, 1), (336, 336), (4000, 20), (20, 4000), (2304, 2304), (383, 385)]


def random_sizes(count: int) -> list[tuple[int, int]]:
    draw = random.Random(5)
    return [(round(2 ** draw.uniform(0, 12)), round(2 ** draw.uniform(0, 12))) for _ in range(count)]


def next_canvases() -> tuple[Canvases, Any]:
    config = LlavaNextConfig()
    return canvases(config.image_grid_pinpoints, 336, 24, None), config


def onevision_canvases(most_tiles: int) -> tuple[Canvases, Any]:
    config = LlavaOnevisionConfig(vision_aspect_ratio=f"anyres_max_{most_tiles}")
    return canvases(config.image_grid_pinpoints, 384, 27, most_tiles), config


def packed_by_transformers(config: Any, tiles: torch.Tensor, size: tuple[int, int], newline: Any) -> Any:
    """The whole model's own method, called without a model."""
    holder = SimpleNamespace(config=config)
    if config.model_type == "llava_next":
        (rows,), _ = modeling_llava_next.LlavaNextModel.pack_image_features(
            holder, [tiles], [size], "default", image_newline=newline
        )
        return rows
    (rows,), _ = modeling_llava_onevision.LlavaOnevisionModel.pack_image_features(
        holder, [tiles], [size], image_newline=newline, vision_aspect_ratio=config.vision_aspect_ratio
    )
    return rows


@pytest.mark.parametrize("kind", ["next", "onevision_9", "onevision_2"])
def test_rows_are_those_of_transformers(kind: str) -> None:
    found, config = next_canvases() if kind == "next" else onevision_canvases(int(kind[-1]))
    newline = torch.full((WIDTH,), -1.0)
    shrunk = 0
    for size in [*SIZES, *random_sizes(100)]:
        packing = found.packing(size)
        assert found.best(size) == select_best_resolution(size, config.image_grid_pinpoints), size
        generator = torch.Generator().manual_seed(size[0])
        tiles = torch.rand(packing.tile_count, packing.whole_rows, WIDTH, generator=generator)
        rows = pack_tiles(tiles, packing, newline)
        assert len(rows) == packing.row_count, size
        assert torch.equal(rows, packed_by_transformers(config, tiles, size, newline)), size
        shrunk += packing.shrunk != packing.kept
    assert (shrunk > 0) == (kind != "next")


@pytest.mark.parametrize("sizes", [[], [[336]], [[336, 100]], [[0, 336]], [[336, 336, 336]]])
def test_canvases_that_are_not_made_of_tiles_are_refused(sizes: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="canvas"):
        canvases(sizes, 336, 24, None)
