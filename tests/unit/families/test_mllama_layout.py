"""Llama 3.2 Vision's prompts: who sees which rows of pictures is what transformers' mask says."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest

from shared.errors import InvalidRequestError
from shared.families.base import Grid, MediaInfo
from shared.families.mllama_layout import MllamaLayout, pictures_seen

PICTURE_ID, PLACES, TILE_ROWS, ROUNDS = 9, 4, 3, 500


def made_up(dice: random.Random) -> tuple[list[int], list[int]]:
    """Tokens with at least one picture's, and tiles of each picture."""
    token_ids = [dice.choice([1, 2, PICTURE_ID]) for _ in range(dice.randint(1, 14))]
    token_ids.insert(dice.randint(0, len(token_ids)), PICTURE_ID)
    return token_ids, [dice.randint(1, PLACES) for _ in range(token_ids.count(PICTURE_ID))]


def infos(tiles: list[int]) -> list[MediaInfo]:
    return [MediaInfo(PLACES * TILE_ROWS, grids=(Grid(1, count, 1),)) for count in tiles]


def mask_of_transformers(token_ids: list[int], tiles: list[int]) -> npt.NDArray[np.bool_]:
    """(tokens, rows of all pictures)."""
    from transformers.models.mllama import processing_mllama as processing

    ranges = processing.get_cross_attention_token_mask(token_ids, PICTURE_ID)
    dense = processing.convert_sparse_cross_attention_mask_to_dense([ranges], [tiles], PLACES, len(token_ids))
    mask: npt.NDArray[np.bool_] = np.repeat(dense[0].reshape(len(token_ids), -1), TILE_ROWS, axis=1) == 1
    return mask


def test_any_part_of_a_prompt_sees_what_the_mask_shows() -> None:
    dice = random.Random(0)
    unseeing = 0
    for _ in range(ROUNDS):
        token_ids, tiles = made_up(dice)
        expected = mask_of_transformers(token_ids, tiles)
        prompt = MllamaLayout(PICTURE_ID, TILE_ROWS).expand(token_ids, infos(tiles))
        ahead = expected.shape[1]
        first = dice.randrange(len(token_ids))
        end = dice.randint(first + 1, len(token_ids))
        runs = pictures_seen(prompt.token_ids, prompt.spans, PICTURE_ID, ahead + first, ahead + end)
        mask = np.zeros_like(expected)
        for (start, seen), (stop, _) in zip(runs, [*runs[1:], (ahead + end, [])], strict=True):
            for lowest, highest in seen:
                mask[start - ahead : stop - ahead, lowest:highest] = True
        assert (mask[first:end] == expected[first:end]).all(), (token_ids, tiles, first, end)
        unseeing += not mask[first].any()
    assert 0 < unseeing < ROUNDS


def test_rows_stand_in_front_and_text_counts_from_nought() -> None:
    prompt = MllamaLayout(PICTURE_ID, TILE_ROWS).expand([1, PICTURE_ID, 2], infos([PLACES]))
    assert prompt.token_ids == [PICTURE_ID] * PLACES * TILE_ROWS + [1, PICTURE_ID, 2]
    assert prompt.positions.tolist() == [[0] * PLACES * TILE_ROWS + [0, 1, 2]]
    assert prompt.next_position == 3
    assert [(span.start, span.length, span.first_row) for span in prompt.spans] == [(0, 12, 0)]


def test_places_without_a_tile_are_a_span_of_their_own() -> None:
    prompt = MllamaLayout(PICTURE_ID, TILE_ROWS).expand([PICTURE_ID, PICTURE_ID], infos([1, 2]))
    found = [(span.item, span.start, span.length, span.first_row) for span in prompt.spans]
    assert found == [(0, 0, 3, 0), (0, 3, 9, 3), (1, 12, 6, 0), (1, 18, 6, 6)]


@pytest.mark.parametrize("count", [0, 2])
def test_placeholders_and_pictures_must_agree(count: int) -> None:
    with pytest.raises(InvalidRequestError):
        MllamaLayout(PICTURE_ID, TILE_ROWS).expand([1, PICTURE_ID], infos([1] * count))
