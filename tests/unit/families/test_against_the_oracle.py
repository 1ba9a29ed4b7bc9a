"""A family's pixels, prompts and rows equal those of the checkpoint's own processor and model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from shared.families.base import MAIN_TENSOR, Family, VideoClip
from shared.families.catalogue import Modality
from tests.asking import moving_picture, picture, sound
from tests.families import takes
from tests.items import features_of
from tests.laying_out import Layouter
from tests.oracle import Oracle, Recording, Video
from tests.unit.families.conftest import EVERY

CPU = torch.device("cpu")
TOLERANCE = 2e-5

Arrays = Mapping[str, npt.NDArray[np.generic]]


def variants_with(modality: Modality) -> list[str]:
    return [name for name, (case, _) in EVERY.items() if takes(case, modality)]


@pytest.mark.parametrize("variant", variants_with("image"))
def test_pixels_tokens_and_rows(
    variant: str, tiny: Callable[[str], Path], family: Callable[[str], Family], oracle: Oracle
) -> None:
    """Pixels are equal to the bit, prompts token for token, rows closely."""
    case, _ = EVERY[variant]
    parts = family(variant)
    preprocessor, tower = parts.preprocessor(), parts.tower(CPU, torch.float32)
    front = Layouter(tiny(variant))
    text = f"look: {front.layout.placeholder_text('image')} what is it?"
    for seed, size in enumerate([*case.sizes, (224, 56), (61, 150)]):
        shown = picture(seed, size)
        answer = oracle.ask(case, tiny(variant), text, [shown], inputs=True, rows=True)
        features = preprocessor.preprocess_image(shown, {})
        arrays = case.tower_pixels(tower, features) if case.tower_pixels else features.arrays
        check_arrays(arrays, answer.inputs, f"{variant} {size}")

        prompt = front.lay_out(text, [features.info])
        ours = prompt.token_ids[case.rows_in_front :]
        assert ours == answer.prompt_ids, f"{variant} {size}: the layout, then the processor"

        (tensors,) = tower.encode([features])
        rows = tensors[MAIN_TENSOR].numpy()
        np.testing.assert_allclose(rows, np.concatenate(answer.rows), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("variant", variants_with("audio"))
def test_recordings(
    variant: str, tiny: Callable[[str], Path], family: Callable[[str], Family], oracle: Oracle
) -> None:
    """Prompts token for token, features and rows closely: alone, and several of different lengths at once."""
    case, _ = EVERY[variant]
    parts = family(variant)
    preprocessor, tower = parts.preprocessor(), parts.tower(CPU, torch.float32)
    front = Layouter(tiny(variant))
    text = f"hear: {front.layout.placeholder_text('audio')} what is it?"
    seconds = [*case.durations, 0.25, 0.999, case.longest]
    items = [features_of(preprocessor, Recording(sound(7 + i, length))) for i, length in enumerate(seconds)]
    together = tower.encode(items)
    for index, length in enumerate(seconds):
        where = f"{variant} {length} s"
        shown = Recording(sound(7 + index, length))
        answer = oracle.ask(case, tiny(variant), text, [shown], inputs=True, rows=True)
        check_features(items[index].arrays, answer.inputs, case.sound_tolerance, where)
        ours = front.lay_out(text, [items[index].info]).token_ids[case.rows_in_front :]
        assert ours == answer.prompt_ids, where

        (alone,) = tower.encode([items[index]])
        for tensors in (alone, together[index]):
            rows = tensors[MAIN_TENSOR].numpy()
            np.testing.assert_allclose(
                rows, np.concatenate(answer.rows), atol=case.sound_tolerance, rtol=TOLERANCE, err_msg=where
            )


@pytest.mark.parametrize("variant", variants_with("video"))
def test_videos(
    variant: str, tiny: Callable[[str], Path], family: Callable[[str], Family], oracle: Oracle
) -> None:
    """Prompts token for token, rows closely, whole and in parts; pixels show in the rows."""
    case, _ = EVERY[variant]
    parts = family(variant)
    preprocessor, tower = parts.preprocessor(), parts.tower(CPU, torch.float32)
    front = Layouter(tiny(variant))
    text = f"look: {front.layout.placeholder_text('video')} what happens?"
    shapes = [
        (case.video_size, case.video_frames, 1),
        ((61, 150), 7, 1),
        (case.sizes[0], 6, 5),
        ((224, 56), case.fewest_frames, 1),
    ]
    for seed, (size, count, step) in enumerate(shapes):
        where = f"{variant} {size}, {count} frames"
        shown = moving_picture(seed, size, count)
        indices = tuple(range(0, count * step, step))
        clip = VideoClip(shown, indices, count * step, 6.0)
        video = Video(shown, 6.0, indices, count * step)
        answer = oracle.ask(case, tiny(variant), text, [video], rows=True)
        features = preprocessor.preprocess_video(clip, {})
        assert front.lay_out(text, [features.info]).token_ids == answer.prompt_ids, where

        (whole,) = tower.encode([features])
        expected = np.concatenate(answer.rows)
        np.testing.assert_allclose(whole[MAIN_TENSOR].numpy(), expected, atol=TOLERANCE, rtol=TOLERANCE)
        pieces = [tower.encode([piece])[0] for piece in tower.split(features)]
        for name, tensor in whole.items():
            joined = torch.cat([piece[name] for piece in pieces])
            torch.testing.assert_close(joined, tensor, atol=TOLERANCE, rtol=TOLERANCE)


def check_arrays(ours: Arrays, theirs: Arrays, where: str) -> None:
    """What both have under one name is equal, and that is the pixels at least.

    The processor may have a leading axis of 1 more, for its batch.
    """
    common = [name for name in ours if name in theirs]
    for name in common:
        assert ours[name].size == theirs[name].size, f"{where}: {name}"
        reshaped = ours[name].reshape(theirs[name].shape)
        np.testing.assert_array_equal(reshaped, theirs[name], err_msg=f"{where}: {name}")
    assert any(ours[name].dtype == np.float32 for name in common), f"{where}: no pixels in {sorted(ours)}"


def check_features(ours: Arrays, theirs: Arrays, tolerance: float, where: str) -> None:
    """What both have under one name is close, as far as ours reaches: transformers pads, at either end.

    Theirs may have a leading axis more, for windows that follow each other.
    """
    common = [name for name in ours if name in theirs and ours[name].dtype == np.float32]
    first = int(theirs["feature_attention_mask"].argmax()) if "feature_attention_mask" in theirs else 0
    for name in common:
        *sides, frames = ours[name].shape
        reach = (*(slice(side) for side in sides), slice(first, first + frames))
        whole = theirs[name].ndim == ours[name].ndim
        shown = (theirs[name] if whole else np.concatenate(list(theirs[name]), axis=-1))[reach]
        np.testing.assert_allclose(ours[name], shown, atol=tolerance, rtol=0, err_msg=f"{where}: {name}")
    assert common, f"{where}: no features in {sorted(ours)}"
