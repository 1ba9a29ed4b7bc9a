"""Videos of which each group of frames has a time in words, as transformers has them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.base import Family, Grid, MediaInfo, RawTensor, VideoClip
from shared.families.pixel_bounds import PixelBounds
from shared.kernels.build import built_library
from shared.kernels.library import Library
from tests.families import all_cases
from tests.laying_out import Layouter
from tests.oracle import Oracle, Video
from tests.reference import ReferenceModel
from tests.unit.families.conftest import Build
from tests.unit.families.test_qwen_videos import clip_of, parts_and_whole, video

CPU = torch.device("cpu")
TOLERANCE = 2e-5
FAMILIES = ("glm4v", "qwen3_5", "qwen3_vl", "qwen3_vl_moe")

GetFamily = Callable[[str], Family]

VIDEOS = {
    "as it is": video(4, (128, 96)),
    "an odd number of frames": video(5, (84, 112), fps=3.0),
    "two frames": video(2, (100, 60), fps=1.0),
    "made larger": video(2, (30, 20)),
    "made smaller": video(12, (400, 230), fps=29.97),
    "sampled from a longer one": video(
        4, (90, 90), fps=24.0, frames_indices=[0, 31, 62, 99], total_num_frames=100
    ),
    "slow": video(6, (90, 90), fps=0.1),
}


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("name", VIDEOS)
def test_patches_prompts_positions_and_rows(
    variant: str,
    name: str,
    tiny: Build,
    family: GetFamily,
    reference: Callable[[str], ReferenceModel],
    oracle: Oracle,
) -> None:
    """Patches to the bit, prompts and positions token for token, rows closely."""
    shown, parts = VIDEOS[name], family(variant)
    layout = parts.prompt_layout()
    text = f"look: {layout.placeholder_text('video')} what happens?"
    answer = oracle.ask(all_cases()[variant], tiny(variant), text, [shown], inputs=True)
    features = parts.preprocessor().preprocess_video(clip_of(shown), {})
    tower: Any = parts.tower(CPU, torch.float32)

    np.testing.assert_array_equal(tower._patches(features).numpy(), answer.inputs["pixel_values_videos"])
    (grid,) = features.info.grids
    assert [[grid.time, grid.height, grid.width]] == answer.inputs["video_grid_thw"].tolist()
    assert features.token_cost == len(answer.inputs["pixel_values_videos"])

    prompt = Layouter(tiny(variant)).lay_out(text, [features.info])
    assert prompt.token_ids == answer.prompt_ids
    whole = reference(variant).model
    arrays = {key: torch.from_numpy(answer.inputs[key]) for key in ("pixel_values_videos", "video_grid_thw")}
    positions, delta = whole.model.get_rope_index(
        torch.tensor([prompt.token_ids]),
        mm_token_type_ids=torch.from_numpy(answer.inputs["mm_token_type_ids"]),
        video_grid_thw=arrays["video_grid_thw"],
        attention_mask=torch.ones(1, len(prompt.token_ids), dtype=torch.int64),
    )
    np.testing.assert_array_equal(prompt.positions, positions[:, 0].numpy())
    assert prompt.next_position == len(prompt.token_ids) + int(delta)

    (made,) = tower.encode([features])
    with torch.no_grad():
        output = whole.get_video_features(**arrays)
    torch.testing.assert_close(made.pop("embeds"), output.pooler_output[0], atol=TOLERANCE, rtol=TOLERANCE)
    for rows, expected in zip(made.values(), getattr(output, "deepstack_features", []), strict=True):
        torch.testing.assert_close(
            rows, torch.cat(list(expected)).view(rows.shape), atol=TOLERANCE, rtol=TOLERANCE
        )


@pytest.mark.parametrize("variant", FAMILIES)
def test_parts_give_the_rows_of_the_whole(
    variant: str, family: GetFamily, pictures: list[Image.Image]
) -> None:
    preprocessor, tower = family(variant).preprocessor(), family(variant).tower(CPU, torch.float32)
    mixed = [
        preprocessor.preprocess_video(clip_of(video(25, (112, 140), seed=1)), {}),
        preprocessor.preprocess_image(pictures[1], {}),
        preprocessor.preprocess_video(clip_of(video(3, (200, 84), seed=2)), {}),
    ]
    assert len(tower.split(mixed[0])) > 3
    parts_and_whole(tower, mixed)


@pytest.mark.parametrize("variant", FAMILIES)
def test_kernels_give_torchs_rows(
    variant: str, family: GetFamily, pictures: list[Image.Image], needs_compiler: None
) -> None:
    preprocessor = family(variant).preprocessor()
    plain, tower = (family(variant).tower(CPU, torch.float32) for _ in range(2))
    assert tower.use_kernels(Library(built_library()).make_team(2))
    mixed = [
        preprocessor.preprocess_image(pictures[2], {}),
        preprocessor.preprocess_video(clip_of(video(9, (112, 140), seed=1)), {}),
    ]
    for expected, made in zip(plain.encode(mixed), tower.encode(mixed), strict=True):
        assert expected.keys() == made.keys()
        for name, rows in made.items():
            # Other orders of summation, over three layers and a merger.
            torch.testing.assert_close(rows, expected[name], atol=3 * TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("variant", FAMILIES)
def test_one_frame_is_a_group(variant: str, family: GetFamily) -> None:
    """Transformers refuses such a video."""
    preprocessor, tower = family(variant).preprocessor(), family(variant).tower(CPU, torch.float32)
    one = video(1, (100, 60))
    two = Video(np.repeat(one.frames, 2, axis=0))
    first, second = (preprocessor.preprocess_video(clip_of(each), {}) for each in (one, two))
    assert first.info.grids == second.info.grids
    assert first.info.timestamps == (0.0,)
    (rows,), (others,) = tower.encode([first]), tower.encode([second])
    assert torch.equal(rows["embeds"], others["embeds"])


@pytest.mark.parametrize("frames", [2, 3, 5, 8, 33])
def test_sizes_keep_to_the_bounds(frames: int) -> None:
    generator = np.random.default_rng(frames)
    bounds = PixelBounds(64 * 64, 200 * 200)
    for _ in range(100):
        height, width = (int(side) for side in generator.integers(1, 600, 2))
        if max(height, width) > 100 * min(height, width):
            continue
        fitted = bounds.fit_clip(frames, height, width, 32, 2)
        assert all(side % 32 == 0 and side > 0 for side in fitted)
        assert fitted == (32, 32) or min(fitted) == 32 or frames * fitted[0] * fitted[1] <= 1.3 * bounds.most


@pytest.mark.parametrize("variant", FAMILIES)
def test_settings_shrink_a_video(variant: str, family: GetFamily) -> None:
    preprocessor = family(variant).preprocessor()
    clip = clip_of(video(4, (300, 200)))
    large, small = (preprocessor.preprocess_video(clip, s) for s in ({}, {"max_pixels": 16 * 64 * 64}))
    assert small.token_cost < large.token_cost
    with pytest.raises(InvalidRequestError):
        preprocessor.preprocess_video(clip, {"fps": 2})


def fields(times: Any, grid: Any = ((2, 4, 4),), rows: int = 8) -> dict[str, RawTensor]:
    tensors = {
        "video_embeds": np.zeros((rows, 64 * 4), np.float32),
        "video_grid_thw": np.array(grid, np.int64),
        "timestamps": np.asarray(times),
    }
    return {
        name: RawTensor(array.dtype.name, array.shape, array.tobytes()) for name, array in tensors.items()
    }


def test_precomputed_times_are_the_prompts(family: GetFamily) -> None:
    times = np.array([0.2, 1.3], np.float32)
    accepted = family("qwen3_vl").preprocessor().accept_embeddings("video", fields(times))
    assert tuple(accepted.tensors) == ("embeds", "deepstack_0", "deepstack_1", "deepstack_2")
    text: Any = family("qwen3_vl").prompt_layout()
    assert re.findall("<([0-9.]+) seconds>", text.item_text("video", accepted.info)) == ["0.2", "1.3"]


@pytest.mark.parametrize(
    "times",
    [
        np.zeros(1, np.float32),
        np.zeros(3, np.float32),
        np.zeros((2, 1), np.float32),
        np.zeros(2, np.float64),
        np.array([0, np.nan], np.float32),
        np.array([0, np.inf], np.float32),
        np.array([-1, 0], np.float32),
    ],
    ids=str,
)
def test_wrong_times_are_refused(times: Any, family: GetFamily) -> None:
    with pytest.raises(BadEmbeddingsError) as caught:
        family("qwen3_vl").preprocessor().accept_embeddings("video", fields(times))
    assert caught.value.param == "timestamps"


def test_every_time_is_written_as_transformers_writes_it() -> None:
    """Rounded once more on the way, a time still reads the same."""
    from shared.families.qwen3_vl import group_times, write_group

    for rate in (24.0, 25.0, 29.97, 30.0, 10.0, 7.0):
        times = tuple(index / rate for index in range(2000))
        for exact, (first, second) in zip(
            group_times(times), zip(times[::2], times[1::2], strict=True), strict=True
        ):
            expected = f"<{(first + second) / 2:.1f} seconds>"
            assert write_group(exact).startswith(expected)
            assert write_group(float(np.float32(exact))).startswith(expected)


def test_several_videos_in_one_item(family: GetFamily) -> None:
    layout: Any = family("qwen3_vl").prompt_layout()
    info = MediaInfo(12, (Grid(2, 4, 4), Grid(1, 4, 4)), timestamps=(0.5, 1.5, 0.0))
    text = layout.item_text("video", info)
    assert text.count("<|video_pad|>") == 3
    assert (
        text.index("<1.5 seconds>")
        < text.index("<|vision_end|><|vision_start|>")
        < text.index("<0.0 seconds>")
    )
    prompt = layout.expand([1, layout.video_id, 2, layout.video_id, 3, layout.video_id], [info])
    assert [(span.start, span.length, span.first_row) for span in prompt.spans] == [
        (1, 4, 0),
        (6, 4, 4),
        (11, 4, 8),
    ]
    with pytest.raises(InvalidRequestError, match="placeholders"):
        layout.expand([1, layout.video_id], [info])
    with pytest.raises(InvalidRequestError, match="grids imply"):
        layout.expand([1, layout.video_id], [MediaInfo(3, (Grid(1, 4, 4),), timestamps=(0.0,))])


def test_a_clip_knows_its_times() -> None:
    clip = VideoClip(np.zeros((2, 4, 4, 3), np.uint8), (0, 12), 24, 24.0)
    assert clip.times == (0.0, 0.5)
