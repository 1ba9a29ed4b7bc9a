"""Every family: precomputed embeddings that fit are taken, and what does not fit is refused by its field."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from shared.errors import BadEmbeddingsError
from shared.families.base import MAIN_TENSOR, Family, MediaInfo, RawTensor
from shared.families.catalogue import Modality
from shared.torch_tensors import to_raw
from tests.families import all_cases
from tests.items import features_of, item
from tests.laying_out import Layouter
from tests.unit.families.conftest import Build

CASES = all_cases()
ALL = pytest.mark.parametrize(
    ("model_type", "modality"),
    [(name, modality) for name, case in CASES.items() for modality in case.facts.embedding_fields],
)
ANY_ROWS = {
    ("phi4_multimodal", "image"),
    ("phi4_multimodal", "audio"),
    ("qwen2_audio", "audio"),
    ("qwen2_5_omni", "audio"),
    ("ultravox", "audio"),
}
"""Whose rows say nothing of an item's shape: one more is another picture or recording."""

HUGE = 2**62

Fields = dict[str, RawTensor]


def info_of(model_type: str, modality: Modality, parts: Family) -> MediaInfo:
    """The layout of an item of the family's own making."""
    return features_of(parts.preprocessor(), item(CASES[model_type], 1, 0, modality)).info


def fields_of(model_type: str, modality: Modality, parts: Family, info: MediaInfo) -> Fields:
    """Embeddings of zeros for an item, with all that must be with them."""
    rows = torch.zeros(info.row_count, parts.hidden_size())
    known = {
        f"{modality}_grid_thw": torch.tensor([[grid.time, grid.height, grid.width] for grid in info.grids]),
        "image_sizes": torch.tensor([info.image_size or (1, 1)]),
        "timestamps": torch.tensor(info.timestamps),
        "duration": torch.tensor([info.duration or 0.0]),
        **{name: torch.zeros(info.row_count, width) for name, width in parts.extra_widths().items()},
    }
    first, *others = CASES[model_type].facts.embedding_fields[modality].required
    return {name: to_raw(known[name]) for name in (*others, *parts.extra_widths())} | {first: to_raw(rows)}


def wrong_rows(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """What may not stand in the place of an item's rows, (rows, width)."""
    for value in (math.nan, math.inf, -math.inf, 1e30):
        broken = rows.clone()
        broken[-1, -1] = value
        yield broken
    yield from (rows[:0], rows[:, :-1], rows[None], rows[0], rows.long())
    yield torch.zeros(len(rows), rows.shape[1] * 7)


def wrong_numbers(right: torch.Tensor) -> Iterator[torch.Tensor]:
    """What may not stand in the place of grids, sizes and times."""
    yield from (right[:0], right[None, None], torch.cat([right, right, right]), torch.zeros(0))
    yield from (torch.full_like(right, value) for value in (-1, -HUGE))
    if right.is_floating_point():
        yield from (torch.full_like(right, value) for value in (math.nan, math.inf, HUGE))
    else:
        yield from (torch.zeros_like(right), right.float())


@ALL
def test_what_fits_is_laid_out(
    model_type: str, modality: Modality, tiny: Build, family: Callable[[str], Family]
) -> None:
    parts = family(model_type)
    info = info_of(model_type, modality, parts)
    item = parts.preprocessor().accept_embeddings(modality, fields_of(model_type, modality, parts, info))
    assert item.info.row_count == info.row_count
    assert list(item.tensors) == [MAIN_TENSOR, *parts.extra_widths()]
    front = Layouter(tiny(model_type))
    spans = front.lay_out(front.layout.placeholder_text(modality), [item.info]).spans
    assert sum(span.length for span in spans) == info.row_count


@ALL
def test_whatever_does_not_fit_is_refused(
    model_type: str, modality: Modality, family: Callable[[str], Family]
) -> None:
    parts = family(model_type)
    preprocessor = parts.preprocessor()
    info = info_of(model_type, modality, parts)
    good = fields_of(model_type, modality, parts, info)
    rows_name = CASES[model_type].facts.embedding_fields[modality].required[0]
    rows = torch.zeros(info.row_count, parts.hidden_size())
    wrong = [(rows_name, tensor) for tensor in wrong_rows(rows)]
    if (model_type, modality) not in ANY_ROWS:
        wrong.append((rows_name, torch.cat([rows, rows[:1]])))
    wrong += [(name, tensor) for name in parts.extra_widths() for tensor in wrong_rows(rows)]
    for name in good.keys() - {rows_name} - parts.extra_widths().keys():
        kind = np.dtype("<i8" if good[name].data_type == "int64" else "<f4")
        right = torch.from_numpy(np.frombuffer(good[name].data, kind).reshape(good[name].shape).copy())
        wrong += [(name, tensor) for tensor in wrong_numbers(right)]
    for name, tensor in wrong:
        with pytest.raises(BadEmbeddingsError) as caught:
            preprocessor.accept_embeddings(modality, good | {name: to_raw(tensor)})
        assert caught.value.param in good, (name, tensor.shape, caught.value.message)


@ALL
def test_huge_sides_end_in_a_refusal(
    model_type: str, modality: Modality, family: Callable[[str], Family]
) -> None:
    """Or, of a picture's size, in the rows that a picture of that shape has: nothing overflows."""
    parts = family(model_type)
    info = info_of(model_type, modality, parts)
    good = fields_of(model_type, modality, parts, info)
    for name in good.keys() & {f"{modality}_grid_thw", "image_sizes"}:
        count = good[name].shape[-1]
        for side in (2**15 + 1, 2**31, 2**32, HUGE):
            for sides in ([side] * count, [1] * (count - 1) + [side], [side] + [1] * (count - 1)):
                given = good | {name: to_raw(torch.tensor([sides]))}
                try:
                    item = parts.preprocessor().accept_embeddings(modality, given)
                except BadEmbeddingsError as error:
                    assert error.param in good
                else:
                    assert name == "image_sizes" and item.info.row_count == info.row_count
