"""Precomputed embeddings: what is accepted, and that all else is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shared.errors import BadEmbeddingsError
from shared.families.base import Family, Grid, RawTensor
from shared.torch_tensors import TORCH_TYPES, from_raw, to_raw

GetFamily = Callable[[str], Family]


def rows(count: int = 4, width: int = 64, dtype: torch.dtype = torch.float32) -> RawTensor:
    return to_raw(torch.randn(count, width, generator=torch.Generator().manual_seed(0)).to(dtype))


def grid(values: Any) -> RawTensor:
    return to_raw(torch.tensor(values, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("values", [[1, 4, 4], [[1, 4, 4]]])
def test_one_picture(dtype: torch.dtype, values: Any, family: GetFamily) -> None:
    fields = {"image_embeds": rows(dtype=dtype), "image_grid_thw": grid(values)}
    item = family("qwen2_vl").preprocessor().accept_embeddings("image", fields)
    assert item.info.row_count == 4
    assert item.info.grids == (Grid(1, 4, 4),)
    assert set(item.tensors) == {"embeds"}
    assert bytes(item.tensors["embeds"].data) == bytes(fields["image_embeds"].data)


def test_several_pictures(family: GetFamily) -> None:
    fields = {"image_embeds": rows(7), "image_grid_thw": grid([[1, 4, 4], [1, 2, 6]])}
    item = family("qwen2_5_vl").preprocessor().accept_embeddings("image", fields)
    assert item.info.grids == (Grid(1, 4, 4), Grid(1, 2, 6))
    assert item.info.row_count == 7


def with_value(value: float, dtype: torch.dtype) -> RawTensor:
    tensor = torch.ones(4, 64, dtype=dtype)
    tensor[2, 3] = value
    return to_raw(tensor)


WHOLE = [1, 4, 4]
WRONG: dict[str, tuple[dict[str, RawTensor], str]] = {
    "no grid": ({"image_embeds": rows()}, "image_grid_thw is missing"),
    "no rows at all": ({"image_grid_thw": grid(WHOLE)}, "image_embeds is missing"),
    "nothing": ({}, "missing"),
    "unknown key": ({"image_embeds": rows(), "image_grid_thw": grid(WHOLE), "zz": rows()}, "'zz'"),
    "one row less": ({"image_embeds": rows(3), "image_grid_thw": grid(WHOLE)}, "implies 4"),
    "one row more": ({"image_embeds": rows(5), "image_grid_thw": grid(WHOLE)}, "implies 4"),
    "hidden size": ({"image_embeds": rows(width=32), "image_grid_thw": grid(WHOLE)}, "takes 64"),
    "rank 3": (
        {"image_embeds": to_raw(torch.ones(1, 4, 64)), "image_grid_thw": grid(WHOLE)},
        "two dimensions",
    ),
    "rank 1": ({"image_embeds": to_raw(torch.ones(4)), "image_grid_thw": grid(WHOLE)}, "two dimensions"),
    "rank 0": ({"image_embeds": to_raw(torch.tensor(1.0)), "image_grid_thw": grid(WHOLE)}, "two dimensions"),
    "integers": (
        {"image_embeds": to_raw(torch.ones(4, 64).long()), "image_grid_thw": grid(WHOLE)},
        "holds int64",
    ),
    "NaN": ({"image_embeds": with_value(np.nan, torch.float32), "image_grid_thw": grid(WHOLE)}, "finite"),
    "infinity": (
        {"image_embeds": with_value(np.inf, torch.float16), "image_grid_thw": grid(WHOLE)},
        "finite",
    ),
    "bfloat16 NaN": (
        {"image_embeds": with_value(np.nan, torch.bfloat16), "image_grid_thw": grid(WHOLE)},
        "finite",
    ),
    "bfloat16 infinity": (
        {"image_embeds": with_value(-np.inf, torch.bfloat16), "image_grid_thw": grid(WHOLE)},
        "finite",
    ),
    "beyond float16": (
        {"image_embeds": with_value(7e4, torch.float32), "image_grid_thw": grid(WHOLE)},
        "beyond 65504",
    ),
    "bfloat16 beyond float16": (
        {"image_embeds": with_value(-7e4, torch.bfloat16), "image_grid_thw": grid(WHOLE)},
        "beyond 65504",
    ),
    "negative sides": ({"image_embeds": rows(), "image_grid_thw": grid([1, -4, -4])}, "between 1"),
    "zeros": ({"image_embeds": rows(), "image_grid_thw": grid([0, 0, 0])}, "between 1"),
    "huge sides": ({"image_embeds": rows(), "image_grid_thw": grid([1, 40000, 40000])}, "between 1"),
    "sides that overflow": ({"image_embeds": rows(), "image_grid_thw": grid([1, 2**62, 4])}, "between 1"),
    "odd sides": ({"image_embeds": rows(), "image_grid_thw": grid([1, 3, 4])}, "multiples of 2"),
    "grid of two": ({"image_embeds": rows(), "image_grid_thw": grid([4, 4])}, "needs [3] or [n, 3]"),
    "grid of rank 3": ({"image_embeds": rows(), "image_grid_thw": grid([[[1, 4, 4]]])}, "needs [3]"),
    "no grids": ({"image_embeds": rows(), "image_grid_thw": RawTensor("int64", (0, 3), b"")}, "needs [3]"),
    "too many grids": ({"image_embeds": rows(65), "image_grid_thw": grid([[1, 2, 2]] * 65)}, "up to 64"),
    "grid of floats": (
        {"image_embeds": rows(), "image_grid_thw": to_raw(torch.tensor([1.0, 4.0, 4.0]))},
        "needs integers",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_embeddings_are_refused(case: str, family: GetFamily) -> None:
    fields, reason = WRONG[case]
    with pytest.raises(BadEmbeddingsError) as caught:
        family("qwen2_vl").preprocessor().accept_embeddings("image", fields)
    assert reason in str(caught.value)
    assert caught.value.param in {"image_embeds", "image_grid_thw", "zz"}


def test_llava_takes_as_many_rows_as_a_picture_has(family: GetFamily) -> None:
    preprocessor = family("llava").preprocessor()
    item = preprocessor.accept_embeddings("image", {"image_embeds": rows(16)})
    assert item.info.row_count == 16
    assert item.info.image_size is None
    sized = preprocessor.accept_embeddings(
        "image", {"image_embeds": rows(16), "image_sizes": grid([[30, 40]])}
    )
    assert sized.info.image_size == (30, 40)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_embeds": rows(15)},
        {"image_embeds": rows(32)},
        {"image_embeds": rows(16), "image_grid_thw": grid(WHOLE)},
        {"image_embeds": rows(16), "image_sizes": grid([0, 3])},
        {"image_embeds": rows(16), "image_sizes": grid([1, 2, 3])},
        {"image_embeds": to_raw(torch.ones(1, 16, 64))},
    ],
)
def test_llava_refuses_all_else(fields: dict[str, RawTensor], family: GetFamily) -> None:
    with pytest.raises(BadEmbeddingsError):
        family("llava").preprocessor().accept_embeddings("image", fields)


@pytest.mark.parametrize("dtype", TORCH_TYPES.values())
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_bytes_and_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(6.0)[: max(1, int(np.prod(shape)))].reshape(shape).to(dtype)
    again = from_raw(to_raw(tensor))
    assert again.dtype == dtype
    assert torch.equal(again, tensor)


def test_a_strided_tensor_becomes_row_major() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(from_raw(to_raw(tensor)), tensor)
