"""Pixtral's pictures: lines and columns, settings, embeddings, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

from shared.checkpoint import read_checkpoint
from shared.errors import BadEmbeddingsError, BadMediaError, InvalidRequestError
from shared.families import load_family
from shared.families.base import Family, Grid, MediaInfo
from shared.families.pixtral_layout import PixtralLayout, lines_and_columns
from shared.torch_tensors import to_raw
from tests.asking import picture
from tests.unit.families.conftest import Build

IMAGE, BREAK, END = 90, 91, 92
LAYOUT = PixtralLayout("[IMG]", IMAGE, BREAK, END)
CPU = torch.device("cpu")

GetFamily = Callable[[str], Family]


@pytest.mark.parametrize(("longest_edge", "cell"), [(1024, 16), (1540, 28), (1000, 16), (92, 8)])
def test_sizes_are_those_of_transformers(longest_edge: int, cell: int) -> None:
    """And a picture of the size that comes out comes out the same."""
    draw = random.Random(3)
    sizes = [(round(2 ** draw.uniform(0, 12)), round(2 ** draw.uniform(0, 12))) for _ in range(200)]
    for size in [*sizes, (longest_edge, longest_edge), (longest_edge + 1, longest_edge), (1, 1)]:
        # One row in memory, whatever the size.
        blank = np.broadcast_to(np.zeros((1, 1, 1), dtype=np.uint8), (3, *size))
        expected = get_resize_output_image_size(
            blank, longest_edge, cell, input_data_format=ChannelDimension.FIRST
        )
        lines, columns = lines_and_columns(size, longest_edge, cell)
        assert (lines * cell, columns * cell) == expected, size
        if lines * columns:
            assert lines_and_columns(expected, longest_edge, cell) == (lines, columns), size


def test_lines_are_spans_with_tokens_between() -> None:
    prompt = LAYOUT.expand(
        [1, IMAGE, 2, IMAGE], [MediaInfo(6, (Grid(1, 2, 3),)), MediaInfo(1, (Grid(1, 1, 1),))]
    )
    assert prompt.token_ids == [1, *[IMAGE] * 3, BREAK, *[IMAGE] * 3, END, 2, IMAGE, END]
    assert [(span.item, span.start, span.length, span.first_row) for span in prompt.spans] == [
        (0, 1, 3, 0),
        (0, 5, 3, 3),
        (1, 10, 1, 0),
    ]
    assert prompt.positions.tolist() == [list(range(12))]
    assert prompt.next_position == 12


@pytest.mark.parametrize(
    "wrong",
    [
        MediaInfo(6),
        MediaInfo(5, (Grid(1, 2, 3),)),
        MediaInfo(6, (Grid(2, 1, 3),)),
        MediaInfo(12, (Grid(1, 2, 3), Grid(1, 2, 3))),
    ],
)
def test_rows_that_the_grid_does_not_imply_are_refused(wrong: MediaInfo) -> None:
    with pytest.raises(InvalidRequestError, match="grids imply"):
        LAYOUT.expand([IMAGE], [wrong])


@pytest.mark.parametrize("media", [[], [MediaInfo(1, (Grid(1, 1, 1),))] * 2])
def test_placeholders_and_media_must_match(media: list[MediaInfo]) -> None:
    with pytest.raises(InvalidRequestError, match="placeholders"):
        LAYOUT.expand([1, IMAGE], media)


@pytest.mark.parametrize("variant", ["llava_pixtral", "mistral3"])
def test_a_batch_of_sizes_equals_each_alone(variant: str, family: GetFamily) -> None:
    preprocessor, tower = family(variant).preprocessor(), family(variant).tower(CPU, torch.float32)
    sizes = [(64, 16), (16, 64), (50, 50), (7, 5)]
    batch = [preprocessor.preprocess_image(picture(seed, size), {}) for seed, size in enumerate(sizes)]
    together = tower.encode(batch)
    for features, rows in zip(batch, together, strict=True):
        (alone,) = tower.encode([features])
        torch.testing.assert_close(rows["embeds"], alone["embeds"], atol=2e-5, rtol=2e-5)


def test_a_smaller_size_may_be_asked_for(family: GetFamily) -> None:
    """And embeddings of it come back with the size that was made of the picture."""
    preprocessor, tower = family("mistral3").preprocessor(), family("mistral3").tower(CPU, torch.float32)
    shown = picture(1, (300, 200))
    whole = preprocessor.preprocess_image(shown, {})
    small = preprocessor.preprocess_image(shown, {"size": {"longest_edge": 40}})
    assert (whole.info.grids, small.info.grids) == ((Grid(1, 8, 12),), (Grid(1, 4, 5),))
    assert small.info.image_size == (32, 40)
    (rows,) = tower.encode([small])
    fields = {"image_embeds": to_raw(rows["embeds"]), "image_sizes": to_raw(torch.tensor([32, 40]))}
    assert preprocessor.accept_embeddings("image", fields).info == small.info


@pytest.mark.parametrize("variant", ["llava_pixtral", "mistral3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"max_pixels": 100},
        {"size": 32},
        {"size": {"longest_edge": 93}},
        {"size": {"longest_edge": 0}},
        {"size": {"longest_edge": True}},
        {"size": {"longest_edge": 32.0}},
        {"size": {"shortest_edge": 32}},
        {"size": {"longest_edge": 32, "shortest_edge": 8}},
    ],
)
def test_other_settings_are_refused(variant: str, settings: dict[str, Any], family: GetFamily) -> None:
    with pytest.raises(InvalidRequestError, match="size"):
        family(variant).preprocessor().preprocess_image(Image.new("RGB", (60, 60)), settings)


def test_nothing_is_left_of_a_thin_picture(family: GetFamily) -> None:
    preprocessor = family("mistral3").preprocessor()
    with pytest.raises(BadMediaError, match="nothing is left"):
        preprocessor.preprocess_image(Image.new("RGB", (1900, 10)), {})


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (11, [16, 48]),
        (13, [16, 48]),
        (12, [0, 48]),
        (12, [16, 48, 1]),
        (12, [[16, 48], [16, 48]]),
        (12, [1, 2**62]),
    ],
)
def test_rows_that_the_size_does_not_imply_are_refused(rows: int, size: Any, family: GetFamily) -> None:
    preprocessor = family("mistral3").preprocessor()
    right = {"image_embeds": to_raw(torch.ones(12, 64)), "image_sizes": to_raw(torch.tensor([16, 48]))}
    assert preprocessor.accept_embeddings("image", right).info.grids == (Grid(1, 2, 6),)
    fields = {"image_embeds": to_raw(torch.ones(rows, 64)), "image_sizes": to_raw(torch.tensor(size))}
    with pytest.raises(BadEmbeddingsError):
        preprocessor.accept_embeddings("image", fields)


def changed(source: Path, target: Path, file: str, **values: Any) -> Family:
    """The family of a copy with other values in one of its files."""
    shutil.copytree(source, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(content | values))
    return load_family(read_checkpoint(target))


def test_layers_that_cannot_be_merged_are_refused(tiny: Build, tmp_path: Path) -> None:
    family = changed(tiny("mistral3"), tmp_path / "two", "config.json", vision_feature_layer=[-1, -2])
    with pytest.raises(InvalidRequestError, match="from one layer"):
        family.preprocessor()


def test_another_tower_is_refused(tiny: Build, tmp_path: Path) -> None:
    vision = {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14}
    family = changed(tiny("mistral3"), tmp_path / "clip", "config.json", vision_config=vision)
    with pytest.raises(InvalidRequestError, match="mistral3 is served with pixtral"):
        family.tower(CPU, torch.float32)


def test_a_strategy_that_drops_rows_is_refused(tiny: Build, tmp_path: Path) -> None:
    family = changed(
        tiny("llava_pixtral"), tmp_path / "default", "config.json", vision_feature_select_strategy="default"
    )
    with pytest.raises(InvalidRequestError, match="vision_feature_select_strategy is 'default'"):
        family.tower(CPU, torch.float32)


def test_a_processor_with_another_size_is_refused(tiny: Build, tmp_path: Path) -> None:
    size = {"height": 64, "width": 64}
    family = changed(tiny("mistral3"), tmp_path / "size", "preprocessor_config.json", size=size)
    with pytest.raises(InvalidRequestError, match="has no longest_edge"):
        family.preprocessor()


def test_a_tokenizer_without_the_tokens_is_refused(tiny: Build, tmp_path: Path) -> None:
    family = changed(
        tiny("mistral3"), tmp_path / "tokens", "processor_config.json", image_break_token="[NEW_LINE]"
    )
    with pytest.raises(InvalidRequestError, match=r"no special token \[NEW_LINE\]"):
        family.prompt_layout()
