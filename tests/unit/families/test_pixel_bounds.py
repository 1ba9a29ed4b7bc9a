"""Sizes within bounds equal those of transformers; requests may only narrow the bounds."""

from __future__ import annotations

import random
from typing import Any

import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from shared.errors import BadMediaError, InvalidRequestError
from shared.families.pixel_bounds import PixelBounds

OWN = PixelBounds(56 * 56, 28 * 28 * 768)


def test_sizes_equal_transformers() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        height, width = (round(2 ** draw.uniform(0, 12)) for _ in range(2))
        if max(height, width) > 200 * min(height, width):
            continue
        factor = draw.choice([28, 32, 16])
        least, most = sorted(round(2 ** draw.uniform(8, 21)) for _ in range(2))
        expected = smart_resize(height, width, factor=factor, min_pixels=least, max_pixels=most)
        assert PixelBounds(least, most).fit(height, width, factor) == expected, (height, width, factor)


def test_thin_frames_are_refused() -> None:
    with pytest.raises(BadMediaError, match="at most 200 times"):
        OWN.fit(1, 201, 28)
    assert OWN.fit(1, 200, 28)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, OWN),
        ({"max_pixels": 10000}, PixelBounds(56 * 56, 10000)),
        ({"max_pixels": 1000}, PixelBounds(1000, 1000)),
        ({"min_pixels": 10, "max_pixels": 20}, PixelBounds(10, 20)),
        ({"size": {"longest_edge": 10000}}, PixelBounds(56 * 56, 10000)),
        ({"size": {"shortest_edge": 5000, "longest_edge": 10000}}, PixelBounds(5000, 10000)),
        ({"size": {"shortest_edge": 4000}, "max_pixels": 5000}, PixelBounds(4000, 5000)),
    ],
)
def test_requests_narrow_the_bounds(settings: dict[str, Any], expected: PixelBounds) -> None:
    assert OWN.narrowed(settings) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"max_pixels": OWN.most + 1},
        {"min_pixels": OWN.most + 1},
        {"min_pixels": 20000, "max_pixels": 10000},
        {"size": {"longest_edge": 10**9}},
        {"size": {"height": 3}},
        {"size": 5},
        {"size": {"longest_edge": True}},
        {"max_pixels": 0},
        {"max_pixels": 3.5},
        {"fps": 2},
    ],
)
def test_other_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        OWN.narrowed(settings)


def test_frames_share_a_budget() -> None:
    bounds = PixelBounds(128 * 28 * 28, 768 * 28 * 28)
    assert bounds.shared(8, 128000, 28, 2) == bounds
    assert bounds.shared(768, 128000, 28, 2).most == int(128000 * 28 * 28 * 0.9) * 2 // 768
    assert bounds.shared(10**6, 128000, 28, 2).most == int(128 * 28 * 28 * 1.05)
