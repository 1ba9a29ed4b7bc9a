"""Layouts are remembered within bounds, the most recently used ones."""

from __future__ import annotations

import pytest

from llm_service import remembered_layouts
from llm_service.remembered_layouts import RememberedLayouts
from shared.families.base import Grid, MediaInfo

PICTURE = MediaInfo(4, (Grid(1, 4, 4),))


def video(group_count: int) -> MediaInfo:
    return MediaInfo(
        group_count, (Grid(group_count, 2, 2),), timestamps=tuple(map(float, range(group_count)))
    )


def test_the_longest_unused_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered_layouts, "MAX_LAYOUT_COUNT", 2)
    layouts = RememberedLayouts()
    layouts.remember("a", PICTURE)
    layouts.remember("b", PICTURE)
    assert layouts.get("a") == PICTURE
    layouts.remember("c", PICTURE)
    assert [layouts.get(key) for key in "abc"] == [PICTURE, None, PICTURE]


def test_long_videos_count_by_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered_layouts, "MAX_PLACE_COUNT", 20)
    layouts = RememberedLayouts()
    for key in "abc":
        layouts.remember(key, PICTURE)
    layouts.remember("film", video(17))
    assert [key for key in "abc" if layouts.get(key) is not None] == ["b", "c"]
    layouts.remember("film", video(3))
    layouts.forget("unheard of")
    layouts.remember("second", video(13))
    assert layouts.get("b") == PICTURE
    layouts.forget("second")
    layouts.remember("third", video(19))
    assert [key for key in ("b", "c", "film", "third") if layouts.get(key) is not None] == ["third"]
