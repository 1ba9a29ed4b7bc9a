"""Qwen3-VL's further rows: from the tower, in precomputed embeddings, and behind the decoder's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.errors import BadEmbeddingsError
from shared.families.base import Family, RawTensor
from tests.reference import ReferenceModel

CPU = torch.device("cpu")
TOLERANCE = 2e-5
LEVELS = ("deepstack_0", "deepstack_1", "deepstack_2")
GRID = RawTensor("int64", (3,), np.array([1, 4, 6], "<i8").tobytes())
ROWS = 6
VARIANTS = pytest.mark.parametrize("variant", ["qwen3_vl", "qwen3_vl_moe"])

GetFamily = Callable[[str], Family]


def floats(array: Any) -> RawTensor:
    return RawTensor("float32", array.shape, np.asarray(array, "<f4").tobytes())


@VARIANTS
def test_levels_equal_transformers(
    variant: str,
    family: GetFamily,
    reference: Callable[[str], ReferenceModel],
    pictures: list[Image.Image],
) -> None:
    preprocessor, tower = family(variant).preprocessor(), family(variant).tower(CPU, torch.float32)
    encoded = tower.encode([preprocessor.preprocess_image(picture, {}) for picture in pictures])
    whole = reference(variant)
    for picture, item in zip(pictures, encoded, strict=True):
        inputs = whole.processor(images=picture, return_tensors="pt")
        with torch.no_grad():
            expected = whole.model.get_image_features(**inputs).deepstack_features
        assert tuple(item) == ("embeds", *LEVELS)
        for name, level in zip(LEVELS, expected, strict=True):
            level = torch.cat(list(level)) if isinstance(level, list | tuple) else level
            torch.testing.assert_close(item[name], level, atol=TOLERANCE, rtol=TOLERANCE)


@VARIANTS
@pytest.mark.parametrize("data_type", ["float32", "bfloat16"])
def test_wide_embeddings_are_those_of_single_fields(variant: str, data_type: str, family: GetFamily) -> None:
    values = np.random.default_rng(0).standard_normal((4, ROWS, 64)).astype("<f4")
    bits = values if data_type == "float32" else (values.view("<u4") >> 16).astype("<u2")
    apart = {
        name: RawTensor(data_type, (ROWS, 64), part.tobytes())
        for name, part in zip(("image_embeds", *LEVELS), bits, strict=True)
    }
    wide = RawTensor(data_type, (ROWS, 256), np.concatenate(list(bits), axis=1).tobytes())
    preprocessor = family(variant).preprocessor()
    one = preprocessor.accept_embeddings("image", {"image_embeds": wide, "image_grid_thw": GRID})
    other = preprocessor.accept_embeddings("image", apart | {"image_grid_thw": GRID})
    assert one == other
    assert tuple(one.tensors) == ("embeds", *LEVELS)


@VARIANTS
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"deepstack_1": None}, "deepstack_1"),
        ({"deepstack_1": np.zeros((ROWS - 1, 64))}, "deepstack_1"),
        ({"deepstack_1": np.zeros((ROWS, 32))}, "deepstack_1"),
        ({"deepstack_1": np.full((ROWS, 64), np.inf)}, "deepstack_1"),
        ({"deepstack_3": np.zeros((ROWS, 64))}, "deepstack_3"),
        ({"image_embeds": np.zeros((ROWS, 256))}, "deepstack_0"),
        ({"image_embeds": np.zeros((ROWS, 128))}, "image_embeds"),
        ({"image_embeds": np.zeros((0, 256)), "deepstack": "none"}, "image_embeds"),
    ],
)
def test_levels_that_do_not_fit_are_refused(
    variant: str, change: dict[str, Any], param: str, family: GetFamily
) -> None:
    fields = {name: np.zeros((ROWS, 64)) for name in ("image_embeds", *LEVELS)} | change
    if fields.pop("deepstack", None) == "none":
        fields = {"image_embeds": fields["image_embeds"]}
    given = {name: floats(array) for name, array in fields.items() if array is not None}
    with pytest.raises(BadEmbeddingsError) as caught:
        family(variant).preprocessor().accept_embeddings("image", given | {"image_grid_thw": GRID})
    assert caught.value.param == param


@VARIANTS
def test_rows_of_zeros_change_nothing(variant: str, family: GetFamily) -> None:
    """Text beside a picture in a step is computed as in a step without one."""
    model = family(variant).language_model(CPU, torch.float32, "sdpa")
    embeds, positions = model.embed(torch.arange(5)), torch.arange(5).expand(3, 5)
    zeros = {level: torch.zeros(5, 64) for level in LEVELS}
    plain = model.forward(embeds, positions)
    assert torch.equal(plain, model.forward(embeds, positions, extras=zeros))
    for level in LEVELS:
        changed = model.forward(embeds, positions, extras=zeros | {level: torch.ones(5, 64)})
        assert not torch.equal(plain, changed), level
