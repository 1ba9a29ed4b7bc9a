"""Qwen2.5-Omni's positions are transformers' own, whatever stands in a prompt and in whatever order."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.checkpoint import read_checkpoint
from shared.families import load_family
from shared.families.base import Grid, MediaInfo

MERGE = 2
Part = tuple[str, Any]


def rows_of_sound(frames: int) -> int:
    """Rows of a spectrogram of so many frames: two strided steps, as in transformers."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


SIDES = st.sampled_from([2, 4, 6])
FRAMES = st.integers(8, 700)
"""Of spectrograms: up to seven seconds, several pieces of a video."""
IMAGES = st.tuples(st.just("image"), st.tuples(st.just(1), SIDES, SIDES))
CLIPS = st.tuples(st.just("audio"), FRAMES)
TEXTS = st.tuples(st.just("text"), st.integers(1, 5))
SECONDS = st.sampled_from([0.04, 0.5, 0.73, 1.0, 2.0, 3.5])
SILENT = st.tuples(st.just("video"), st.tuples(st.tuples(st.integers(1, 6), SIDES, SIDES), SECONDS))
HEARD = st.tuples(st.just("heard"), st.tuples(st.tuples(st.integers(1, 6), SIDES, SIDES), SECONDS, FRAMES))


def mixtures(videos: st.SearchStrategy[Part]) -> st.SearchStrategy[list[Part]]:
    """A prompt's parts. transformers takes a prompt's videos all with their sound, or all without."""
    return st.lists(st.one_of(TEXTS, IMAGES, CLIPS, videos), min_size=1, max_size=7)


@cache
def world(folder: Path) -> SimpleNamespace:
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

    return SimpleNamespace(
        layout=load_family(read_checkpoint(folder)).prompt_layout(), model=Thinker.from_pretrained(folder)
    )


@pytest.fixture
def omni(tiny_checkpoint: Callable[[str], Path]) -> SimpleNamespace:
    return world(tiny_checkpoint("qwen2_5_omni"))


def prompt_of(parts: list[Part], ids: Any) -> tuple[list[int], list[MediaInfo]]:
    """The prompt with one placeholder for each item between its marks, and the items' layouts."""
    token_ids: list[int] = [5]
    infos: list[MediaInfo] = []
    for kind, value in parts:
        if kind == "text":
            token_ids += [7] * value
            continue
        if kind == "audio":
            token_ids += [ids.audio_start, ids.audio, ids.audio_end]
            infos.append(MediaInfo(row_count=rows_of_sound(value)))
            continue
        grid = Grid(*(value if kind == "image" else value[0]))
        seen = grid.time * grid.height * grid.width // MERGE**2
        heard = rows_of_sound(value[2]) if kind == "heard" else 0
        pad = ids.image if kind == "image" else ids.video
        token_ids += [ids.vision_start, pad, ids.vision_end]
        timed = {} if kind == "image" else {"seconds_per_grid": value[1]}
        infos.append(MediaInfo(row_count=seen + heard, grids=(grid,), sound_row_count=heard, **timed))
    return [*token_ids, 9], infos


def expected(model: Any, token_ids: list[int], parts: list[Part]) -> torch.Tensor:
    """transformers' positions, (3, tokens)."""
    images = [value for kind, value in parts if kind == "image"]
    videos = [value for kind, value in parts if kind in ("video", "heard")]
    frames = [value if kind == "audio" else value[2] for kind, value in parts if kind in ("audio", "heard")]
    ids = torch.tensor([token_ids])
    positions, _ = model.get_rope_index(
        ids,
        torch.tensor(images) if images else None,
        torch.tensor([value[0] for value in videos]) if videos else None,
        torch.ones_like(ids),
        any(kind == "heard" for kind, _ in parts),
        torch.tensor(frames) if frames else None,
        torch.tensor([value[1] for value in videos]) if videos else None,
    )
    found: torch.Tensor = positions[:, 0]
    return found


def check(omni: SimpleNamespace, parts: list[Part]) -> None:
    layout = omni.layout
    token_ids, infos = prompt_of(parts, layout.ids)
    prompt = layout.expand(token_ids, infos)
    right = expected(omni.model, list(prompt.token_ids), parts)
    assert torch.from_numpy(prompt.positions).equal(right.long()), parts
    assert prompt.next_position == int(right.max()) + 1


RULES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@RULES
@given(parts=mixtures(SILENT))
def test_positions_of_what_is_seen_and_heard_apart(omni: SimpleNamespace, parts: list[Part]) -> None:
    check(omni, parts)


@RULES
@given(parts=mixtures(HEARD))
def test_positions_of_videos_with_their_sound_among_others(omni: SimpleNamespace, parts: list[Part]) -> None:
    check(omni, parts)
