"""Frames of a video to the numbers that a tower reads, in torch.

Runs in the tower's process, as worker processes have no torch: a preprocessor
settles sizes and hands on raw frames, and the tower calls this at the start of
`encode`, on its device. Gives bit by bit what transformers' video processors give
through torchvision on the same device, but for "lanczos" on CUDA, which they
replace by another filter there and which runs on the CPU here.

Knows filters and normalisation. Does not know sizes, patches nor any family.
"""

from __future__ import annotations

import platform

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from shared.families.video_settings import FrameRecipe, Resample

_BRIGHTEST = 255


def frames_to_pixels(
    frames: npt.NDArray[np.uint8],
    size: tuple[int, int],
    recipe: FrameRecipe,
    device: torch.device,
) -> torch.Tensor:
    """Resizes, scales and normalises frames.

    Each frame by itself: those of several videos of one size may come together, and
    those of one video apart.

    Args:
        frames: uint8 (frames, height, width, 3).
        size: height and width to come.

    Returns:
        float32 (frames, 3, height, width) on `device`.
    """
    resized = resize_frames(to_channels_first(frames, device), size, recipe.resample)
    return normalise(resized.to(device), recipe)


def to_channels_first(frames: npt.NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """uint8 (frames, height, width, 3) to uint8 (frames, 3, height, width) on `device`."""
    # Arrays out of another process may be read-only, of which torch warns; nothing here writes to them.
    owned = frames if frames.flags.writeable else frames.copy()
    return torch.from_numpy(owned).permute(0, 3, 1, 2).to(device)


def resize_frames(frames: torch.Tensor, size: tuple[int, int], resample: Resample) -> torch.Tensor:
    """Resizes with anti-aliasing, rounded to whole levels.

    Args:
        frames: uint8 (frames, channels, height, width).
        size: height and width to come.

    Returns:
        uint8 (frames, channels, *size), on the frames' device, or on the CPU for "lanczos".
    """
    if frames.shape[-2:] == size:
        return frames
    if resample == "lanczos":
        frames = frames.cpu()
    if _resizes_levels(frames.device, resample):
        return _interpolate(frames, size, resample)
    exact = _interpolate(frames.to(torch.float32), size, resample)
    # Only filters with negative parts leave the range; clamping does nothing to the others.
    return exact.clamp_(0, _BRIGHTEST).round_().to(torch.uint8)


def normalise(frames: torch.Tensor, recipe: FrameRecipe) -> torch.Tensor:
    """Scales and normalises levels.

    Args:
        frames: uint8 (frames, channels, height, width).

    Returns:
        float32 of the same shape.
    """
    levels = frames.to(torch.float32)
    if not recipe.mean:
        return levels if recipe.scale is None else levels * recipe.scale
    # Scaling is folded into mean and deviation: the same order of roundings as in transformers.
    unscale = 1.0 if recipe.scale is None else 1.0 / recipe.scale
    mean, std = (
        (torch.tensor(values, device=frames.device) * unscale).view(-1, 1, 1)
        for values in (recipe.mean, recipe.std)
    )
    return levels.sub_(mean).div_(std)


def _resizes_levels(device: torch.device, resample: Resample) -> bool:
    """Whether torch has a way of its own for whole levels, whose rounding differs; torchvision's rule."""
    if device.type != "cpu":
        return False
    if resample != "bilinear":
        return True
    arm = platform.machine() in ("aarch64", "arm64")
    return arm or torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _interpolate(frames: torch.Tensor, size: tuple[int, int], resample: Resample) -> torch.Tensor:
    return functional.interpolate(frames, size=size, mode=resample, align_corners=False, antialias=True)
