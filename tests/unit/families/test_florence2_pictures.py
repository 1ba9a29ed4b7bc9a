"""Florence-2's encoder half: the processor's pixels, the whole model's rows, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.checkpoint import read_checkpoint
from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.base import MAIN_TENSOR, Features
from shared.families.config import model_config
from shared.families.florence2_pictures import (
    PREFIXES,
    Florence2Preprocessor,
    Florence2Tower,
    build_florence2_tower,
    rows_of_a_picture,
)
from shared.families.weights import load_half
from shared.torch_tensors import from_raw, to_raw
from tests.asking import picture
from tests.families.florence2 import ROW_COUNT, build

CPU = torch.device("cpu")
SIZES = ((112, 84), (64, 64), (60, 140), (224, 56), (9, 200))
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("florence2"))


@pytest.fixture(scope="module")
def preprocessor(folder: Path) -> Florence2Preprocessor:
    return load_preprocessor(folder)


@pytest.fixture(scope="module")
def tower(folder: Path) -> Florence2Tower:
    return load_tower(folder, torch.float32)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    from transformers import Florence2ForConditionalGeneration

    model, loading = Florence2ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values())
    return model.eval()


def load_preprocessor(folder: Path) -> Florence2Preprocessor:
    checkpoint = read_checkpoint(folder)
    return Florence2Preprocessor(checkpoint, model_config(checkpoint))


def load_tower(folder: Path, dtype: torch.dtype) -> Florence2Tower:
    checkpoint = read_checkpoint(folder)
    config = model_config(checkpoint)
    module = load_half(lambda: build_florence2_tower(config), checkpoint, "encoder", PREFIXES, CPU, dtype)
    return Florence2Tower(module, config)


def features_of(preprocessor: Florence2Preprocessor) -> list[Features]:
    return [preprocessor.preprocess_image(picture(seed, size), {}) for seed, size in enumerate(SIZES)]


def test_pixels_are_the_processors_own(folder: Path, preprocessor: Florence2Preprocessor) -> None:
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    for seed, (size, ours) in enumerate(zip(SIZES, features_of(preprocessor), strict=True)):
        theirs = processor(images=picture(seed, size), return_tensors="np")
        np.testing.assert_array_equal(ours.arrays["pixel_values"], theirs["pixel_values"])
        assert ours.info.row_count == ROW_COUNT
        assert ours.info.image_size == size[::-1]


def test_rows_are_the_whole_models_alone_and_in_a_batch(
    preprocessor: Florence2Preprocessor, tower: Florence2Tower, whole: Any
) -> None:
    batch = features_of(preprocessor)
    pixels = torch.from_numpy(np.concatenate([features.arrays["pixel_values"] for features in batch]))
    with torch.no_grad():
        expected = whole.get_image_features(pixels).pooler_output
    for features, together, one in zip(batch, tower.encode(batch), expected, strict=True):
        (alone,) = tower.encode([features])
        for tensors in (alone, together):
            assert list(tensors) == [MAIN_TENSOR]
            assert len(tensors[MAIN_TENSOR]) == features.info.row_count
            torch.testing.assert_close(tensors[MAIN_TENSOR], one, atol=TOLERANCE, rtol=TOLERANCE)
    assert (expected[0] - expected[1]).abs().max() > 0.05


def test_bfloat16_stays_finite(folder: Path, preprocessor: Florence2Preprocessor) -> None:
    for tensors in load_tower(folder, torch.bfloat16).encode(features_of(preprocessor)):
        assert tensors[MAIN_TENSOR].dtype == torch.bfloat16
        assert tensors[MAIN_TENSOR].isfinite().all()


def test_rows_of_the_real_checkpoints() -> None:
    from transformers import Florence2Config

    assert rows_of_a_picture(Florence2Config().vision_config, 768, 768) == 577


def test_a_processor_that_promises_other_rows_is_refused(folder: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(folder, tmp_path / "changed")
    file = changed / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_seq_length": ROW_COUNT + 1}))
    with pytest.raises(InvalidRequestError, match="image_seq_length is 6"):
        load_preprocessor(changed)


def test_settings_are_refused(preprocessor: Florence2Preprocessor) -> None:
    with pytest.raises(InvalidRequestError, match="max_pixels"):
        preprocessor.preprocess_image(picture(0, (60, 60)), {"max_pixels": 3136})


def test_embeddings_come_back_as_they_were_sent(
    preprocessor: Florence2Preprocessor, tower: Florence2Tower
) -> None:
    features = features_of(preprocessor)[0]
    (tensors,) = tower.encode([features])
    sent = {"image_embeds": to_raw(tensors[MAIN_TENSOR]), "image_sizes": to_raw(torch.tensor([[84, 112]]))}
    item = preprocessor.accept_embeddings("image", sent)
    assert item.info == features.info
    assert torch.equal(from_raw(item.tensors[MAIN_TENSOR]), tensors[MAIN_TENSOR])


@pytest.mark.parametrize(
    ("shape", "message"), [((ROW_COUNT - 1, 64), "has 4 rows"), ((ROW_COUNT, 32), "takes 64")]
)
def test_wrong_embeddings_are_refused(
    preprocessor: Florence2Preprocessor, shape: tuple[int, int], message: str
) -> None:
    with pytest.raises(BadEmbeddingsError, match=message):
        preprocessor.accept_embeddings("image", {"image_embeds": to_raw(torch.ones(shape))})
