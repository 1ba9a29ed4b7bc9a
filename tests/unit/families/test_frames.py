"""Frames to pixels: bit by bit what transformers makes of them through torchvision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint
from shared.families.frames import frames_to_pixels, resize_frames
from shared.families.video_settings import FrameRecipe, Resample, read_recipe, read_video_settings
from tests.oracle import PACKAGES

CPU = torch.device("cpu")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROGRAM = Path(__file__).with_name("torchvision_frames.py")

SIZES = (
    # height and width of the frames, then to come
    (37, 53, 28, 56),
    (100, 75, 56, 84),
    (28, 28, 56, 56),
    (240, 427, 112, 196),
    (17, 19, 17, 19),
    (61, 44, 44, 61),
    (200, 3, 28, 28),
    (1, 1, 28, 14),
    (31, 33, 14, 14),
    (31, 1, 28, 14),
)
FILTERS: tuple[Resample, ...] = ("bicubic", "bilinear", "lanczos")
RECIPES = {"both": (1 / 255, MEAN, STD), "scaled": (1 / 255, (), ()), "normalised": (None, MEAN, STD)}


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Frames with hard edges, and the size that they shall have."""
    random = np.random.default_rng(0)
    return [
        (random.choice(np.array([0, 7, 128, 255], np.uint8), (3, height, width, 3)), (new_height, new_width))
        for height, width, new_height, new_width in SIZES
    ]


@pytest.fixture(scope="module")
def answers(
    cases: list[tuple[np.ndarray, tuple[int, int]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """What transformers makes of the cases."""
    folder = tmp_path_factory.mktemp("frames")
    arrays = {f"frames_{number}": frames for number, (frames, _) in enumerate(cases)}
    arrays |= {f"size_{number}": np.array(size) for number, (_, size) in enumerate(cases)}
    np.savez(folder / "in.npz", mean=np.array(MEAN), std=np.array(STD), **arrays)  # type: ignore[arg-type]
    command = [sys.executable, str(PROGRAM), str(PACKAGES), str(folder / "in.npz"), str(folder / "out.npz")]
    subprocess.run(command, check=True, timeout=120)
    with np.load(folder / "out.npz") as found:
        return {name: found[name] for name in found.files}


@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("resample", FILTERS)
def test_pixels_are_those_of_the_video_processors(
    cases: list[tuple[np.ndarray, tuple[int, int]]],
    answers: dict[str, np.ndarray],
    resample: Resample,
    number: int,
) -> None:
    frames, size = cases[number]
    for treatment, (scale, mean, std) in RECIPES.items():
        pixels = frames_to_pixels(frames, size, FrameRecipe(resample, scale, mean, std), CPU)
        expected = torch.from_numpy(answers[f"{number} {resample} {treatment}"]).to(torch.float32)
        assert torch.equal(pixels, expected), treatment


def test_frames_are_resized_each_by_itself() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (5, 40, 30, 3), dtype=np.uint8)
    recipe = FrameRecipe("bicubic", 1 / 255, MEAN, STD)
    whole = frames_to_pixels(frames, (28, 56), recipe, CPU)
    apart = [frames_to_pixels(part, (28, 56), recipe, CPU) for part in (frames[:2], frames[2:])]
    assert torch.equal(whole, torch.cat(apart))


def test_frames_that_may_not_be_written_to_stay_as_they_are() -> None:
    frames = np.full((1, 28, 28, 3), 200, np.uint8)
    frames.flags.writeable = False
    recipe = FrameRecipe("bicubic", 1 / 255, MEAN, STD)
    frames_to_pixels(frames, (28, 28), recipe, CPU)
    assert (frames == 200).all()


@pytest.mark.parametrize("resample", FILTERS)
def test_levels_stay_between_black_and_white(resample: Resample) -> None:
    edge = torch.zeros((1, 3, 8, 8), dtype=torch.uint8)
    edge[..., 4:] = 255
    resized = resize_frames(edge, (31, 31), resample)
    assert resized.dtype == torch.uint8
    # A value that wrapped around would stand on the wrong side of the edge.
    assert (resized[..., :12] < 64).all()
    assert (resized[..., -12:] > 191).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resample", FILTERS)
def test_another_device_differs_by_a_level_at_most(resample: Resample) -> None:
    frames = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    here = resize_frames(frames, (28, 56), resample).to(torch.int16)
    there = resize_frames(frames.cuda(), (28, 56), resample).cpu().to(torch.int16)
    assert (here - there).abs().max() <= 1


class TestSettings:
    """Where a checkpoint says how its videos are processed."""

    def test_order_of_files(self, tmp_path: Path) -> None:
        checkpoint = Checkpoint(tmp_path, {})
        with pytest.raises(InvalidRequestError):
            read_video_settings(checkpoint, {})
        for place, (name, value) in enumerate(
            (
                ("preprocessor_config.json", {"at": 0}),
                ("video_preprocessor_config.json", {"at": 1}),
                ("processor_config.json", {"video_processor": {"at": 2}}),
            )
        ):
            (tmp_path / name).write_text(json.dumps(value))
            assert read_video_settings(checkpoint, {"more": 9}) == {"at": place, "more": 9}

    def test_a_processor_file_without_videos_is_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "processor_config.json").write_text('{"processor_class": "A"}')
        (tmp_path / "preprocessor_config.json").write_text('{"at": 0}')
        assert read_video_settings(Checkpoint(tmp_path, {}), {}) == {"at": 0}

    def test_null_leaves_the_default(self, tmp_path: Path) -> None:
        (tmp_path / "preprocessor_config.json").write_text('{"fps": null, "size": {"height": 3}}')
        settings = read_video_settings(Checkpoint(tmp_path, {}), {"fps": 2, "size": {"height": 1}})
        assert settings == {"fps": 2, "size": {"height": 3}}

    @pytest.mark.parametrize("text", ["[]", "{", '"a"'])
    def test_a_file_that_is_no_object(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(InvalidRequestError):
            read_video_settings(Checkpoint(tmp_path, {}), {})

    def test_recipe(self) -> None:
        given = {"resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
        assert read_recipe(given) == FrameRecipe("bicubic", 1 / 255, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
        assert read_recipe(given | {"do_rescale": False}).scale is None
        assert read_recipe(given | {"do_normalize": False, "resample": 1}) == FrameRecipe(
            "lanczos", 1 / 255, (), ()
        )
        with pytest.raises(InvalidRequestError):
            read_recipe(given | {"resample": 0})
