"""Placeholders and positions equal those of transformers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from shared.errors import InvalidRequestError
from shared.families.base import Family, Grid, MediaInfo
from shared.families.mrope import MRopeLayout
from tests.reference import ReferenceModel

IMAGE, START, END, VIDEO = 90, 91, 92, 93
LAYOUT = MRopeLayout(image_id=IMAGE, video_id=VIDEO, start_id=START, end_id=END, merge_size=2)

GetFamily = Callable[[str], Family]
GetReference = Callable[[str], ReferenceModel]


def info(*grids: tuple[int, int, int]) -> MediaInfo:
    return MediaInfo(sum(t * h * w // 4 for t, h, w in grids), tuple(Grid(*grid) for grid in grids))


@pytest.mark.parametrize("variant", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize(
    "grids",
    [
        [],
        [(1, 4, 4)],
        [(1, 2, 2)],
        [(1, 2, 12)],
        [(1, 12, 2), (1, 4, 6), (1, 4, 6)],
        [(3, 4, 6)],
    ],
)
@pytest.mark.parametrize("tail", [0, 5])
def test_positions_equal_transformers(
    variant: str,
    grids: list[tuple[int, int, int]],
    tail: int,
    family: GetFamily,
    reference: GetReference,
) -> None:
    layout: Any = family(variant).prompt_layout()
    token_ids = [5, 6, 7]
    for _ in grids:
        token_ids += [layout.start_id, layout.image_id, layout.end_id, 8]
    token_ids += list(range(20, 20 + tail))
    prompt = layout.expand(token_ids, [info(grid) for grid in grids])

    ids = torch.tensor([prompt.token_ids])
    expected, delta = reference(variant).model.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == layout.image_id).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
        attention_mask=torch.ones_like(ids),
    )
    np.testing.assert_array_equal(prompt.positions, expected[:, 0].numpy())
    assert prompt.next_position == len(prompt.token_ids) + int(delta)
    assert prompt.positions.dtype == np.int64


MIXED: list[tuple[str, tuple[int, int, int], float | None]] = [
    ("video", (4, 4, 6), 1.0),
    ("image", (1, 4, 4), None),
    # Not a number of single precision: 4 x 0.1 x 5 is cut off to 2 there, 4 x 0.7 x 5 to 13.
    ("video", (30, 2, 2), 0.1),
    ("image", (1, 2, 12), None),
    ("image", (1, 4, 4), None),
    ("video", (6, 2, 8), 0.7),
    ("video", (3, 2, 2), 1 / 3),
    ("video", (2, 2, 2), 123.456),
]


@pytest.mark.parametrize("variant", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize(
    "chosen", [[0], [1, 0], [2, 4, 5], list(range(len(MIXED))), [7, 6, 5, 4, 3, 2, 1, 0]]
)
@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_positions_of_videos_equal_transformers(
    variant: str, chosen: list[int], told: bool, family: GetFamily, reference: GetReference
) -> None:
    layout: Any = family(variant).prompt_layout()
    ids_of = layout.placeholder_ids()
    token_ids = [5, 6, 7]
    media = []
    for modality, grid, seconds in (MIXED[index] for index in chosen):
        token_ids += [layout.start_id, ids_of[modality], layout.end_id, 8, 9]
        media.append(replace(info(grid), seconds_per_grid=seconds if told else None))
    prompt = layout.expand(token_ids, media)

    ids = torch.tensor([prompt.token_ids])
    kinds = (ids == ids_of["image"]).int() + 2 * (ids == ids_of["video"]).int()
    grids = {
        kind: torch.tensor([MIXED[index][1] for index in chosen if MIXED[index][0] == kind])
        for kind in ("image", "video")
    }
    seconds = [MIXED[index][2] for index in chosen if MIXED[index][0] == "video"]
    expected, delta = reference(variant).model.model.get_rope_index(
        ids,
        mm_token_type_ids=kinds,
        image_grid_thw=grids["image"],
        video_grid_thw=grids["video"],
        second_per_grid_ts=torch.tensor(seconds) if told else None,
        attention_mask=torch.ones_like(ids),
    )
    np.testing.assert_array_equal(prompt.positions, expected[:, 0].numpy())
    assert prompt.next_position == len(prompt.token_ids) + int(delta)


def test_placeholders_take_items_in_their_order() -> None:
    prompt = LAYOUT.expand([1, VIDEO, 2, IMAGE], [info((2, 2, 2)), info((1, 4, 4))])
    assert prompt.token_ids == [1, VIDEO, VIDEO, 2, *[IMAGE] * 4]
    assert [(span.item, span.start, span.length) for span in prompt.spans] == [(0, 1, 2), (1, 4, 4)]


def test_a_video_whose_time_leads_beyond_all_positions_is_refused(family: GetFamily) -> None:
    layout: Any = family("qwen2_5_vl").prompt_layout()
    long = replace(info((1000, 2, 2)), seconds_per_grid=60000.0)
    with pytest.raises(InvalidRequestError, match="beyond"):
        layout.expand([1, layout.video_id], [long])


def test_several_videos_in_one_item_read_as_several_items() -> None:
    together = LAYOUT.expand([1, START, VIDEO, END, 2], [info((2, 4, 4), (3, 2, 6))])
    apart = LAYOUT.expand([1, START, VIDEO, END, START, VIDEO, END, 2], [info((2, 4, 4)), info((3, 2, 6))])
    assert together.token_ids == apart.token_ids
    np.testing.assert_array_equal(together.positions, apart.positions)


def test_a_prompt_that_ends_in_a_picture() -> None:
    prompt = LAYOUT.expand([1, IMAGE], [info((1, 4, 8))])
    assert prompt.positions.tolist() == [[0] + [1] * 8, [0] + [1] * 4 + [2] * 4, [0, *[1, 2, 3, 4] * 2]]
    assert prompt.next_position == 5


def test_several_pictures_in_one_item_read_as_several_items() -> None:
    together = LAYOUT.expand([1, START, IMAGE, END, 2], [info((1, 4, 4), (1, 2, 6))])
    apart = LAYOUT.expand([1, START, IMAGE, END, START, IMAGE, END, 2], [info((1, 4, 4)), info((1, 2, 6))])
    assert together.token_ids == apart.token_ids
    np.testing.assert_array_equal(together.positions, apart.positions)
    assert together.next_position == apart.next_position
    assert [(span.item, span.start, span.length, span.first_row) for span in together.spans] == [
        (0, 2, 4, 0),
        (0, 8, 3, 4),
    ]
    assert [span.start for span in apart.spans] == [2, 8]


def test_an_empty_prompt() -> None:
    prompt = LAYOUT.expand([], [])
    assert prompt.positions.shape == (3, 0)
    assert prompt.next_position == 0


@pytest.mark.parametrize(
    ("token_ids", "media"),
    [([1, IMAGE], []), ([1], [info((1, 2, 2))]), ([IMAGE, IMAGE], [info((1, 2, 2))])],
)
def test_placeholders_and_media_must_match(token_ids: list[int], media: list[MediaInfo]) -> None:
    with pytest.raises(InvalidRequestError, match="placeholders"):
        LAYOUT.expand(token_ids, media)


@pytest.mark.parametrize("wrong", [MediaInfo(5, (Grid(1, 4, 4),)), MediaInfo(4)])
def test_rows_that_the_grid_does_not_imply_are_refused(wrong: MediaInfo) -> None:
    with pytest.raises(InvalidRequestError, match="grids imply"):
        LAYOUT.expand([IMAGE], [wrong])


def test_llava_counts_in_one_dimension(family: GetFamily) -> None:
    layout = family("llava").prompt_layout()
    image = layout.placeholder_ids()["image"]
    prompt = layout.expand([1, image, 2, image], [MediaInfo(16), MediaInfo(16)])
    assert prompt.token_ids == [1, *[image] * 16, 2, *[image] * 16]
    assert prompt.positions.tolist() == [list(range(34))]
    assert prompt.next_position == 34
    assert [(span.item, span.start, span.length) for span in prompt.spans] == [(0, 1, 16), (1, 18, 16)]
    with pytest.raises(InvalidRequestError, match="placeholders"):
        layout.expand([1, image], [])


@pytest.mark.parametrize("variant", ["qwen2_vl", "llava"])
def test_layout_needs_neither_torch_nor_transformers(variant: str, tiny: Callable[[str], Any]) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from shared.checkpoint import read_checkpoint\n"
        "from shared.families import load_family\n"
        f"load_family(read_checkpoint(Path({str(tiny(variant))!r}))).prompt_layout().expand([1, 2], [])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
