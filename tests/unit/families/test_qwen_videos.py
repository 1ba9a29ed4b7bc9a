"""Videos of Qwen2-VL and Qwen2.5-VL equal transformers with the checkpoint's own processor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.checkpoint import read_checkpoint
from shared.errors import BadEmbeddingsError, BadMediaError, InvalidRequestError
from shared.families import load_family
from shared.families.base import Family, Features, RawTensor, Tower, VideoClip
from shared.kernels.build import built_library
from shared.kernels.library import Library
from tests.families import all_cases
from tests.oracle import Oracle, Video
from tests.reference import ReferenceModel
from tests.unit.families.conftest import Build

CPU = torch.device("cpu")
TOLERANCE = 2e-5
FAMILIES = ("qwen2_vl", "qwen2_5_vl")

GetFamily = Callable[[str], Family]
GetReference = Callable[[str], ReferenceModel]


def video(frames: int, size: tuple[int, int], *, seed: int = 0, **told: Any) -> Video:
    """Noise of a size, width and height, that resizing keeps some of."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (frames, 7, 9, 3), dtype=np.uint8)
    shown = [Image.fromarray(each).resize(size, Image.Resampling.BILINEAR) for each in small]
    return Video(np.stack([np.asarray(each) for each in shown]), **told)


def clip_of(shown: Video) -> VideoClip:
    count = len(shown.frames)
    indices = shown.frames_indices or range(count)
    return VideoClip(shown.frames, tuple(indices), shown.total_num_frames or count, shown.fps)


VIDEOS = {
    "as it is": video(4, (112, 84)),
    "an odd number of frames": video(5, (84, 112), fps=3.0),
    "one frame": video(1, (100, 60)),
    "made larger": video(2, (30, 20)),
    "made smaller": video(6, (400, 230), fps=29.97),
    "sampled from a longer one": video(
        4, (90, 90), fps=24.0, frames_indices=[0, 31, 62, 99], total_num_frames=100
    ),
}


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("name", VIDEOS)
def test_patches_tokens_times_and_rows(
    variant: str,
    name: str,
    tiny: Build,
    family: GetFamily,
    reference: GetReference,
    oracle: Oracle,
) -> None:
    """Patches to the bit, prompts token for token, rows closely."""
    shown = VIDEOS[name]
    text = "look: <|vision_start|><|video_pad|><|vision_end|> what happens?"
    answer = oracle.ask(all_cases()[variant], tiny(variant), text, [shown], inputs=True)
    features = family(variant).preprocessor().preprocess_video(clip_of(shown), {})
    tower: Any = family(variant).tower(CPU, torch.float32)

    np.testing.assert_array_equal(tower._patches(features).numpy(), answer.inputs["pixel_values_videos"])
    (grid,) = features.info.grids
    assert [[grid.time, grid.height, grid.width]] == answer.inputs["video_grid_thw"].tolist()
    assert features.token_cost == len(answer.inputs["pixel_values_videos"])
    layout: Any = family(variant).prompt_layout()
    before = [token for token in answer.prompt_ids if token != layout.video_id]
    place = answer.prompt_ids.index(layout.video_id)
    prompt = layout.expand([*before[:place], layout.video_id, *before[place:]], [features.info])
    assert prompt.token_ids == answer.prompt_ids
    if variant == "qwen2_5_vl":
        seconds = np.float32(features.info.seconds_per_grid or 0)
        assert [seconds] == answer.inputs["second_per_grid_ts"].tolist()
    else:
        assert features.info.seconds_per_grid is None

    (made,) = tower.encode([features])
    arrays = {n: torch.from_numpy(answer.inputs[n]) for n in ("pixel_values_videos", "video_grid_thw")}
    with torch.no_grad():
        (expected,) = reference(variant).model.get_video_features(**arrays).pooler_output
    torch.testing.assert_close(made["embeds"], expected, atol=TOLERANCE, rtol=TOLERANCE)


def parts_and_whole(tower: Tower, features: Sequence[Features]) -> None:
    whole = tower.encode(features)
    for item, rows in zip(features, whole, strict=True):
        parts = tower.split(item)
        assert [part.token_cost <= 256 for part in parts]
        assert sum(part.token_cost for part in parts) == item.token_cost
        encoded = [tower.encode([part])[0]["embeds"] for part in parts]
        assert [len(each) for each in encoded] == [part.info.row_count for part in parts]
        torch.testing.assert_close(torch.cat(encoded), rows["embeds"], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.fixture
def mixed(request: pytest.FixtureRequest, family: GetFamily, pictures: list[Image.Image]) -> list[Features]:
    """Pictures and videos by turns."""
    preprocessor = family(request.getfixturevalue("variant")).preprocessor()
    long = clip_of(video(25, (112, 140), seed=1))
    short = clip_of(video(3, (200, 84), seed=2))
    return [
        preprocessor.preprocess_image(pictures[1], {}),
        preprocessor.preprocess_video(long, {}),
        preprocessor.preprocess_image(pictures[2], {}),
        preprocessor.preprocess_video(short, {}),
    ]


@pytest.mark.parametrize("variant", FAMILIES)
def test_parts_give_the_rows_of_the_whole(variant: str, mixed: list[Features], family: GetFamily) -> None:
    tower = family(variant).tower(CPU, torch.float32)
    assert [len(tower.split(each)) for each in mixed] == [1, 13 // 3 + 1, 1, 1]
    parts_and_whole(tower, mixed)


@pytest.mark.parametrize("variant", FAMILIES)
def test_kernels_give_torchs_rows(
    variant: str, mixed: list[Features], family: GetFamily, needs_compiler: None
) -> None:
    plain, tower = (family(variant).tower(CPU, torch.float32) for _ in range(2))
    assert tower.use_kernels(Library(built_library()).make_team(2))
    for expected, made in zip(plain.encode(mixed), tower.encode(mixed), strict=True):
        torch.testing.assert_close(made["embeds"], expected["embeds"], atol=TOLERANCE, rtol=TOLERANCE)
    parts_and_whole(tower, mixed)


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_batch_gives_what_each_gives_alone(variant: str, mixed: list[Features], family: GetFamily) -> None:
    tower = family(variant).tower(CPU, torch.float32)
    for together, alone in zip(tower.encode(mixed), mixed, strict=True):
        (rows,) = tower.encode([alone])
        torch.testing.assert_close(together["embeds"], rows["embeds"], atol=TOLERANCE, rtol=TOLERANCE)


def test_later_frames_matter(family: GetFamily) -> None:
    preprocessor, tower = family("qwen2_vl").preprocessor(), family("qwen2_vl").tower(CPU, torch.float32)
    frames = video(4, (84, 84)).frames
    changed = frames.copy()
    changed[3] = 255 - changed[3]
    first, second = (
        tower.encode([preprocessor.preprocess_video(clip_of(Video(each)), {})])[0]["embeds"]
        for each in (frames, changed)
    )
    half = len(first) // 2
    assert torch.equal(first[:half], second[:half])
    assert (first[half:] - second[half:]).abs().max() > 0.01


def test_settings_shrink_a_video(family: GetFamily) -> None:
    preprocessor = family("qwen2_vl").preprocessor()
    clip = clip_of(video(2, (300, 200)))
    large, small = (preprocessor.preprocess_video(clip, s) for s in ({}, {"max_pixels": 56 * 56}))
    assert small.token_cost <= 16 < large.token_cost
    with pytest.raises(InvalidRequestError):
        preprocessor.preprocess_video(clip, {"fps": 2})


def test_a_thin_video_is_refused(family: GetFamily) -> None:
    with pytest.raises(BadMediaError, match="at most 200 times"):
        family("qwen2_vl").preprocessor().preprocess_video(
            clip_of(Video(np.zeros((2, 1, 500, 3), np.uint8))), {}
        )


def changed(folder: Path, target: Path, name: str, changes: dict[str, Any] | None) -> Family:
    """The family of a copy of a checkpoint with one file changed, or deleted."""
    shutil.copytree(folder, target)
    if changes is None:
        (target / name).unlink()
    else:
        settings = json.loads((target / name).read_text())
        (target / name).write_text(json.dumps(settings | changes))
    return load_family(read_checkpoint(target))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("video_preprocessor_config.json", None),
        ("video_preprocessor_config.json", {"min_pixels": None, "max_pixels": None}),
        ("video_preprocessor_config.json", {"size": {"shortest_edge": 3136, "longest_edge": 9000}}),
        ("video_preprocessor_config.json", {"cap_pixels_per_frame": True, "max_video_tokens": 300}),
        (
            "video_preprocessor_config.json",
            {"resample": 2, "image_mean": [0.5, 0.4, 0.3], "rescale_factor": 0.01},
        ),
        ("video_preprocessor_config.json", {"do_normalize": False}),
        ("preprocessor_config.json", {"max_pixels": 5000}),
    ],
    ids=str,
)
def test_the_checkpoints_own_settings(
    name: str, changes: dict[str, Any] | None, tiny: Build, tmp_path: Path, oracle: Oracle
) -> None:
    """Where they are, and where the processor's class has them, as in transformers."""
    family = changed(tiny("qwen2_vl"), tmp_path / "changed", name, changes)
    text = "<|vision_start|><|video_pad|><|vision_end|>"
    for shown in (VIDEOS["made smaller"], VIDEOS["made larger"]):
        answer = oracle.ask(all_cases()["qwen2_vl"], tmp_path / "changed", text, [shown], inputs=True)
        features = family.preprocessor().preprocess_video(clip_of(shown), {})
        tower: Any = family.tower(CPU, torch.float32)
        np.testing.assert_array_equal(tower._patches(features).numpy(), answer.inputs["pixel_values_videos"])


@pytest.mark.parametrize(
    "changes",
    [{"patch_size": 16}, {"do_resize": False}, {"resample": 5}, {"temporal_patch_size": 1}],
    ids=str,
)
def test_a_processor_that_does_not_fit_is_refused(
    changes: dict[str, Any], tiny: Build, tmp_path: Path
) -> None:
    family = changed(tiny("qwen2_vl"), tmp_path / "changed", "video_preprocessor_config.json", changes)
    with pytest.raises(InvalidRequestError):
        family.preprocessor()


def raw(array: np.ndarray) -> RawTensor:
    return RawTensor(array.dtype.name, array.shape, array.tobytes())


def embeddings(rows: int, grids: Any, seconds: Any = None) -> dict[str, RawTensor]:
    fields = {
        "video_embeds": raw(np.zeros((rows, 64), np.float32)),
        "video_grid_thw": raw(np.array(grids, np.int64)),
    }
    return fields if seconds is None else fields | {"second_per_grid_ts": raw(np.array(seconds, np.float32))}


class TestPrecomputed:
    """`video_embeds`, `video_grid_thw` and `second_per_grid_ts`."""

    @pytest.mark.parametrize("variant", FAMILIES)
    def test_one_and_several(self, variant: str, family: GetFamily) -> None:
        preprocessor = family(variant).preprocessor()
        one = preprocessor.accept_embeddings("video", embeddings(12, [3, 4, 4]))
        assert one.info.row_count == 12
        assert one.info.seconds_per_grid is None
        several = preprocessor.accept_embeddings("video", embeddings(14, [[3, 4, 4], [1, 2, 4]]))
        assert [grid.time for grid in several.info.grids] == [3, 1]
        assert list(several.tensors) == ["embeds"]

    @pytest.mark.parametrize("seconds", [0.5, [0.5], [0.5, 0.5]])
    def test_seconds(self, seconds: Any, family: GetFamily) -> None:
        accepted = (
            family("qwen2_5_vl")
            .preprocessor()
            .accept_embeddings("video", embeddings(14, [[3, 4, 4], [1, 2, 4]], seconds))
        )
        assert accepted.info.seconds_per_grid == 0.5

    @pytest.mark.parametrize("seconds", [[0.5, 1.0], [1, 1, 1], [0.0], [-1.0], [np.nan], [np.inf], [[0.5]]])
    def test_wrong_seconds(self, seconds: Any, family: GetFamily) -> None:
        with pytest.raises(BadEmbeddingsError):
            family("qwen2_5_vl").preprocessor().accept_embeddings(
                "video", embeddings(14, [[3, 4, 4], [1, 2, 4]], seconds)
            )

    def test_fields_are_those_of_the_modality(self, family: GetFamily) -> None:
        for variant in FAMILIES:
            with pytest.raises(BadEmbeddingsError):
                family(variant).preprocessor().accept_embeddings("image", embeddings(12, [3, 4, 4]))
        with pytest.raises(BadEmbeddingsError, match="unknown field"):
            family("qwen2_vl").preprocessor().accept_embeddings("video", embeddings(12, [3, 4, 4], 1.0))
        with pytest.raises(BadEmbeddingsError, match="implies"):
            family("qwen2_vl").preprocessor().accept_embeddings("video", embeddings(11, [3, 4, 4]))
