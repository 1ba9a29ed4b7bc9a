"""A checkpoint's settings for videos, read without its video processor.

Knows in which files transformers looks for them and what becomes of frames. Does
not know any family, and imports neither torch nor transformers: transformers'
video processors need torchvision, which the services do without. What a class
of them has as defaults its family brings along.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint

Resample = Literal["lanczos", "bilinear", "bicubic"]

RESAMPLES: Mapping[int, Resample] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers, as the files have them. No checkpoint takes the others for videos."""

OWN_FILE = "video_preprocessor_config.json"
NESTED_FILE = "processor_config.json"
PICTURES_FILE = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class FrameRecipe:
    """How the pixels of frames become a tower's numbers.

    Attributes:
        resample: filter of the resizing.
        scale: factor to the pixels, or None where they stay as they are.
        mean: taken off each channel after scaling; () where nothing is.
        std: divides each channel after that; as long as `mean`.
    """

    resample: Resample
    scale: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_video_settings(checkpoint: Checkpoint, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint's video processor.

    They stand under "video_processor" in processor_config.json, else in
    video_preprocessor_config.json, else those of pictures in
    preprocessor_config.json hold for videos too: transformers' order.

    Args:
        defaults: what the processor's class has where the file says nothing or null.

    Raises:
        InvalidRequestError: the checkpoint has none of them, or one that is no JSON object.
    """
    found = _find(checkpoint.folder)
    return dict(defaults) | {name: value for name, value in found.items() if value is not None}


def read_own_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the file that is for videos alone says; {} where there is none.

    Raises:
        InvalidRequestError: it is no JSON object.
    """
    return _read(checkpoint.folder / OWN_FILE) or {}


def own_frame_rate(checkpoint: Checkpoint) -> float | None:
    """Frames a second at which the checkpoint's video processor samples, where its own file says so.

    transformers' processors sample only where `do_sample_frames` says so; a number of
    frames beside the rate is left to whoever asks.

    Raises:
        InvalidRequestError: the file is no JSON object.
    """
    settings = read_own_settings(checkpoint)
    rate = settings.get("fps")
    if settings.get("do_sample_frames") is not True or isinstance(rate, bool):
        return None
    return float(rate) if isinstance(rate, int | float) and 0 < rate < math.inf else None


def read_recipe(settings: Mapping[str, Any]) -> FrameRecipe:
    """What the settings say on the pixels of frames.

    Needs `resample`, `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean`
    and `image_std`, a family's defaults included; booleans count as true and the
    factor as 1/255 where they are absent.

    Raises:
        InvalidRequestError: a filter that there is none of.
    """
    if settings["resample"] not in RESAMPLES:
        raise InvalidRequestError(f"videos are not resized with the filter {settings['resample']!r}")
    rescales, normalises = settings.get("do_rescale", True), settings.get("do_normalize", True)
    return FrameRecipe(
        resample=RESAMPLES[settings["resample"]],
        scale=float(settings.get("rescale_factor", 1 / 255)) if rescales else None,
        mean=tuple(settings["image_mean"]) if normalises else (),
        std=tuple(settings["image_std"]) if normalises else (),
    )


def _find(folder: Path) -> dict[str, Any]:
    nested = _read(folder / NESTED_FILE)
    if nested is not None and "video_processor" in nested:
        return dict(nested["video_processor"])
    for name in (OWN_FILE, PICTURES_FILE):
        found = _read(folder / name)
        if found is not None:
            return found
    raise InvalidRequestError(f"{folder} has neither {OWN_FILE} nor {PICTURES_FILE}")


def _read(file: Path) -> dict[str, Any] | None:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{file} is not a JSON object")
    return value
