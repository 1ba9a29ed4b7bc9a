"""The encoder half equals transformers' whole model, picture by picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from shared.errors import BadMediaError, InvalidRequestError
from shared.families.base import Family
from tests.reference import ReferenceModel
from tests.unit.families.conftest import VARIANTS

CPU = torch.device("cpu")
TOLERANCE = 2e-5

GetFamily = Callable[[str], Family]
GetReference = Callable[[str], ReferenceModel]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_equals_each_picture_alone_in_transformers(
    variant: str, family: GetFamily, reference: GetReference, pictures: list[Image.Image]
) -> None:
    preprocessor = family(variant).preprocessor()
    features = [preprocessor.preprocess_image(picture, {}) for picture in pictures]

    encoded = family(variant).tower(CPU, torch.float32).encode(features)

    whole = reference(variant)
    for picture, item, made in zip(pictures, features, encoded, strict=True):
        (expected,) = whole.image_features(dict(whole.processor(images=picture, return_tensors="pt")))
        assert made["embeds"].shape == (item.info.row_count, 64)
        torch.testing.assert_close(made["embeds"], expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("variant", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_pictures_differ(variant: str, family: GetFamily, pictures: list[Image.Image]) -> None:
    preprocessor = family(variant).preprocessor()
    same_size = [picture.resize((84, 84)) for picture in pictures]
    features = [preprocessor.preprocess_image(picture, {}) for picture in same_size]
    first, second, *_ = family(variant).tower(CPU, torch.float32).encode(features)
    assert (first["embeds"] - second["embeds"]).abs().max() > 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels_are_the_processors_own(
    variant: str, family: GetFamily, reference: GetReference, pictures: list[Image.Image]
) -> None:
    preprocessor = family(variant).preprocessor()
    for picture in pictures:
        expected = reference(variant).processor(images=picture, return_tensors="np")
        features = preprocessor.preprocess_image(picture, {})
        for name, array in expected.items():
            np.testing.assert_array_equal(features.arrays[name], array)
        assert features.info.image_size == (picture.height, picture.width)


@pytest.mark.parametrize("variant", ["qwen2_vl", "llava", "llava_siglip_qwen2"])
@pytest.mark.parametrize("size", [(1, 1), (3, 60), (60, 3), (1, 150), (4, 4)])
def test_odd_sizes_are_processed(variant: str, size: tuple[int, int], family: GetFamily) -> None:
    # Sides of 1, 3 or 4 could be taken for colour channels: a red picture must stay red.
    picture = Image.new("RGB", size, (255, 0, 0))
    pixels = family(variant).preprocessor().preprocess_image(picture, {}).arrays["pixel_values"]
    # Patches x channels first for Qwen, 1 x channels first for LLaVA.
    red, green, blue = pixels.reshape(len(pixels), 3, -1).mean(axis=(0, 2))
    assert red > 0.9
    assert green < -0.9
    assert blue < -0.9


@pytest.mark.parametrize("variant", ["qwen2_vl", "llava"])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_a_thin_picture_is_refused(variant: str, size: tuple[int, int], family: GetFamily) -> None:
    with pytest.raises(BadMediaError, match="at most 200 times"):
        family(variant).preprocessor().preprocess_image(Image.new("RGB", size), {})


def test_settings_shrink_a_picture(family: GetFamily, pictures: list[Image.Image]) -> None:
    preprocessor = family("qwen2_vl").preprocessor()
    large = preprocessor.preprocess_image(pictures[3], {})
    small = preprocessor.preprocess_image(pictures[3], {"max_pixels": 56 * 56})
    assert small.token_cost <= 16 < large.token_cost


@pytest.mark.parametrize(
    "settings",
    [
        {"max_pixels": 10**9},
        {"min_pixels": 10**9},
        {"max_pixels": -1},
        {"max_pixels": "many"},
        {"max_pixels": True},
        {"patch_size": 1},
        {"min_pixels": 20000, "max_pixels": 10000},
    ],
)
def test_other_settings_are_refused(settings: dict[str, object], family: GetFamily) -> None:
    with pytest.raises(InvalidRequestError):
        family("qwen2_vl").preprocessor().preprocess_image(Image.new("RGB", (60, 60)), settings)


def test_llava_has_no_settings(family: GetFamily) -> None:
    with pytest.raises(InvalidRequestError, match="max_pixels"):
        family("llava").preprocessor().preprocess_image(Image.new("RGB", (60, 60)), {"max_pixels": 3136})


def test_half_precision_stays_close(family: GetFamily, pictures: list[Image.Image]) -> None:
    for variant in ("qwen2_vl", "qwen2_5_vl", "llava"):
        features = [family(variant).preprocessor().preprocess_image(pictures[1], {})]
        (exact,) = family(variant).tower(CPU, torch.float32).encode(features)
        (half,) = family(variant).tower(CPU, torch.bfloat16).encode(features)
        assert half["embeds"].dtype == torch.bfloat16
        error = (half["embeds"].float() - exact["embeds"]).abs().mean()
        assert error < 0.05 * exact["embeds"].abs().mean()
