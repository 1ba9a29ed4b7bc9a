"""Every family: the rows that are announced before the tower runs are the rows that it gives."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch

from shared.families.base import MAIN_TENSOR, Family, VideoClip
from tests.asking import moving_picture, picture, sound
from tests.families import all_cases, cases_with
from tests.items import features_of
from tests.laying_out import Layouter
from tests.oracle import Oracle, Recording
from tests.unit.families.conftest import Build

CASES = all_cases()
CPU = torch.device("cpu")
SIZE_COUNT = 100
ASKED_COUNT = 20
VIDEO_COUNT = 20
BATCH = 10
SIDES = (8, 400)


@pytest.mark.parametrize("model_type", cases_with("image"))
def test_a_hundred_sizes(
    model_type: str, tiny: Build, family: Callable[[str], Family], oracle: Oracle
) -> None:
    parts = family(model_type)
    preprocessor, tower = parts.preprocessor(), parts.tower(CPU, torch.float32)
    front = Layouter(tiny(model_type))
    text = f"look: {front.layout.placeholder_text('image')} what is it?"
    widths = {MAIN_TENSOR: parts.hidden_size(), **parts.extra_widths()}
    sizes = random_sizes(CASES[model_type].least_side)
    pictures = [picture(index, size) for index, size in enumerate(sizes)]
    for first in range(0, SIZE_COUNT, BATCH):
        batch = [preprocessor.preprocess_image(shown, {}) for shown in pictures[first : first + BATCH]]
        for size, features, tensors in zip(sizes[first:], batch, tower.encode(batch), strict=False):
            rows = features.info.row_count
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            assert shapes == {name: (rows, width) for name, width in widths.items()}, size
            spans = front.lay_out(text, [features.info]).spans
            assert sum(span.length for span in spans) == rows, size
    for size, shown in zip(sizes[:ASKED_COUNT], pictures, strict=False):
        info = preprocessor.preprocess_image(shown, {}).info
        expected = oracle.ask(CASES[model_type], tiny(model_type), text, [shown]).prompt_ids
        ours = front.lay_out(text, [info]).token_ids[CASES[model_type].rows_in_front :]
        assert ours == expected, size


@pytest.mark.parametrize("model_type", cases_with("audio"))
def test_recordings(model_type: str, tiny: Build, family: Callable[[str], Family], oracle: Oracle) -> None:
    parts = family(model_type)
    preprocessor, tower = parts.preprocessor(), parts.tower(CPU, torch.float32)
    front = Layouter(tiny(model_type))
    text = f"hear: {front.layout.placeholder_text('audio')} what is it?"
    widths = {MAIN_TENSOR: parts.hidden_size(), **parts.extra_widths()}
    dice = random.Random(2)
    shortest, longest = 0.1, CASES[model_type].longest
    seconds = [math.exp(dice.uniform(math.log(shortest), math.log(longest))) for _ in range(VIDEO_COUNT)]
    recordings = [Recording(sound(seed, length)) for seed, length in enumerate(seconds)]
    for first in range(0, VIDEO_COUNT, BATCH):
        batch = [features_of(preprocessor, heard) for heard in recordings[first : first + BATCH]]
        for length, features, tensors in zip(seconds[first:], batch, tower.encode(batch), strict=False):
            rows = features.info.row_count
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            assert shapes == {name: (rows, width) for name, width in widths.items()}, length
            spans = front.lay_out(text, [features.info]).spans
            assert sum(span.length for span in spans) == rows, length
    for heard in recordings:
        info = features_of(preprocessor, heard).info
        expected = oracle.ask(CASES[model_type], tiny(model_type), text, [heard]).prompt_ids
        ours = front.lay_out(text, [info]).token_ids[CASES[model_type].rows_in_front :]
        assert ours == expected, len(heard.samples)


@pytest.mark.parametrize("model_type", cases_with("video"))
def test_videos(model_type: str, tiny: Build, family: Callable[[str], Family]) -> None:
    parts = family(model_type)
    preprocessor, tower = parts.preprocessor(), parts.tower(CPU, torch.float32)
    front = Layouter(tiny(model_type))
    text = f"look: {front.layout.placeholder_text('video')} what happens?"
    widths = {MAIN_TENSOR: parts.hidden_size(), **parts.extra_widths()}
    dice = random.Random(1)
    for seed, size in enumerate(random_sizes()[:VIDEO_COUNT]):
        count = dice.randint(1, 9)
        clip = VideoClip(
            moving_picture(seed, size, count), tuple(range(count)), count, dice.choice([1.0, 25.0])
        )
        features = preprocessor.preprocess_video(clip, {})
        rows = features.info.row_count
        (tensors,) = tower.encode([features])
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert shapes == {name: (rows, width) for name, width in widths.items()}, (size, count)
        spans = front.lay_out(text, [features.info]).spans
        assert sum(span.length for span in spans) == rows, (size, count)
        assert sum(piece.info.row_count for piece in tower.split(features)) == rows, (size, count)


def random_sizes(least: int = SIDES[0]) -> list[tuple[int, int]]:
    """Widths and heights, small ones as often as large ones, the same in every run."""
    dice = random.Random(0)

    def side() -> int:
        return round(math.exp(dice.uniform(*map(math.log, (least, SIDES[1])))))

    return [(side(), side()) for _ in range(SIZE_COUNT)]
