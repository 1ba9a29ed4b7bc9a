"""Llama 3.2 Vision's encoder half: the processor's pixels, the whole model's states, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.checkpoint import read_checkpoint
from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.base import MAIN_TENSOR, Features, RawTensor
from shared.families.config import model_config
from shared.families.mllama_pictures import (
    PIXELS,
    PREFIXES,
    RATIO,
    MllamaPreprocessor,
    MllamaTower,
    build_mllama_tower,
)
from shared.families.weights import load_half
from shared.torch_tensors import from_raw, to_raw
from tests.asking import picture
from tests.families.mllama import TILES, build

CPU = torch.device("cpu")
ROWS = TILES * 5
SIZES = ((112, 84), (20, 20), (60, 140), (224, 56), (9, 200), (400, 380))
TOLERANCE = 2e-5

Grid = tuple[int, ...] | list[list[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("mllama"))


@pytest.fixture(scope="module")
def preprocessor(folder: Path) -> MllamaPreprocessor:
    checkpoint = read_checkpoint(folder)
    return MllamaPreprocessor(checkpoint, model_config(checkpoint))


@pytest.fixture(scope="module")
def tower(folder: Path) -> MllamaTower:
    return load_tower(folder, torch.float32)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    from transformers import MllamaForConditionalGeneration

    model, loading = MllamaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values())
    return model.eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Callable[..., Any]:
    from transformers import AutoTokenizer, MllamaImageProcessorPil, MllamaProcessor

    pixels = MllamaImageProcessorPil.from_pretrained(folder)
    return MllamaProcessor(pixels, AutoTokenizer.from_pretrained(folder))


def load_tower(folder: Path, dtype: torch.dtype) -> MllamaTower:
    checkpoint = read_checkpoint(folder)
    config = model_config(checkpoint)
    module = load_half(lambda: build_mllama_tower(config), checkpoint, "encoder", PREFIXES, CPU, dtype)
    return MllamaTower(module, config)


def states_of(whole: Any, inputs: Any) -> torch.Tensor:
    """(pictures, rows, hidden), composed as the model's forward does it."""
    with torch.no_grad():
        hidden = whole.model.vision_model(
            **{n: inputs[n] for n in (PIXELS, RATIO, "aspect_ratio_mask")}
        ).last_hidden_state
        states: torch.Tensor = whole.model.multi_modal_projector(hidden)[0].flatten(1, 2)
    return states


def features_of(preprocessor: MllamaPreprocessor) -> list[Features]:
    return [preprocessor.preprocess_image(picture(seed, size), {}) for seed, size in enumerate(SIZES)]


def test_pixels_are_the_processors_own_without_the_places_that_hold_no_tile(
    preprocessor: MllamaPreprocessor, processor: Callable[..., Any]
) -> None:
    for seed, size in enumerate(SIZES):
        shown = picture(seed, size)
        theirs = processor(images=[shown], text="<|image|>look", return_tensors="np")
        ours = preprocessor.preprocess_image(shown, {})
        count = int(theirs["aspect_ratio_mask"].sum())
        np.testing.assert_array_equal(ours.arrays[PIXELS], theirs[PIXELS][0, 0, :count])
        assert not theirs[PIXELS][0, 0, count:].any()
        assert ours.arrays[RATIO].tolist() == theirs[RATIO][0].tolist()
        (grid,) = ours.info.grids
        assert grid.time * grid.height * grid.width == count
        assert ours.info.row_count == ROWS
    assert len({tuple(f.arrays[RATIO]) for f in features_of(preprocessor)}) > 3


def test_states_are_the_whole_models_alone_and_in_a_batch(
    preprocessor: MllamaPreprocessor, tower: MllamaTower, whole: Any, processor: Callable[..., Any]
) -> None:
    pictures = [picture(seed, size) for seed, size in enumerate(SIZES)]
    inputs = processor(images=[pictures], text="<|image|>" * len(SIZES), return_tensors="pt")
    expected = states_of(whole, inputs)
    batch = features_of(preprocessor)
    for features, together, one in zip(batch, tower.encode(batch), expected, strict=True):
        (alone,) = tower.encode([features])
        for tensors in (alone, together):
            assert list(tensors) == [MAIN_TENSOR]
            torch.testing.assert_close(tensors[MAIN_TENSOR], one, atol=TOLERANCE, rtol=TOLERANCE)


def test_bfloat16_stays_finite(folder: Path, preprocessor: MllamaPreprocessor) -> None:
    for tensors in load_tower(folder, torch.bfloat16).encode(features_of(preprocessor)):
        assert tensors[MAIN_TENSOR].dtype == torch.bfloat16
        assert tensors[MAIN_TENSOR].isfinite().all()


def test_settings_are_refused(preprocessor: MllamaPreprocessor) -> None:
    with pytest.raises(InvalidRequestError, match="max_pixels"):
        preprocessor.preprocess_image(picture(0, (60, 60)), {"max_pixels": 3136})


def test_states_come_back_as_they_were_sent(preprocessor: MllamaPreprocessor, tower: MllamaTower) -> None:
    features = features_of(preprocessor)[2]
    (tensors,) = tower.encode([features])
    item = preprocessor.accept_embeddings("image", fields(tensors[MAIN_TENSOR], grid_of(features)))
    assert item.info.row_count == features.info.row_count
    assert item.info.grids == features.info.grids
    assert torch.equal(from_raw(item.tensors[MAIN_TENSOR]), tensors[MAIN_TENSOR])


@pytest.mark.parametrize(
    ("rows", "width", "grid", "message"),
    [
        (ROWS - 1, 64, [[1, 1, 1]], "4 places for tiles of 5"),
        (5, 64, [[1, 1, 1]], "4 places for tiles of 5"),
        (ROWS, 32, [[1, 1, 1]], "takes 64"),
        (ROWS, 64, [[1, 3, 3]], "one of"),
        (ROWS, 64, [[2, 1, 1]], "one of"),
        (ROWS, 64, [[1, 1, 1], [1, 1, 1]], "one picture"),
    ],
)
def test_wrong_states_are_refused(
    preprocessor: MllamaPreprocessor, rows: int, width: int, grid: Grid, message: str
) -> None:
    with pytest.raises(BadEmbeddingsError, match=message):
        preprocessor.accept_embeddings("image", fields(torch.ones(rows, width), grid))


def test_states_without_their_grid_are_refused(preprocessor: MllamaPreprocessor) -> None:
    with pytest.raises(BadEmbeddingsError, match="image_grid_thw is missing"):
        preprocessor.accept_embeddings("image", {"image_embeds": to_raw(torch.ones(ROWS, 64))})


def fields(rows: torch.Tensor, grid: Grid) -> dict[str, RawTensor]:
    return {"image_embeds": to_raw(rows), "image_grid_thw": to_raw(torch.tensor(grid))}


def grid_of(features: Features) -> Grid:
    return [[grid.time, grid.height, grid.width] for grid in features.info.grids]
