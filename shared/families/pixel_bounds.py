"""Bounds of a picture's or a frame's pixels, and the sizes within them: as the Qwen-VL families count.

Knows the arithmetic of their processors in transformers and the settings that a
request may have of its own. Imports neither torch nor transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import BadMediaError, InvalidRequestError
from shared.families.image_processor import MAX_ASPECT_RATIO

SETTINGS = ("min_pixels", "max_pixels", "size")
"""What a request may say: bounds, or both of them as a size of `shortest_edge` and `longest_edge`."""

_USABLE = 0.9
"""Part of a video's tokens that its frames share; the rest is for the text."""


@dataclass(frozen=True, slots=True)
class PixelBounds:
    """Fewest and most pixels, height times width."""

    least: int
    most: int

    @classmethod
    def of_size(cls, size: Mapping[str, int]) -> PixelBounds:
        """Reads a processor's `size`, whose edges are no edges but numbers of pixels."""
        return cls(size["shortest_edge"], size["longest_edge"])

    def narrowed(self, settings: Mapping[str, Any]) -> PixelBounds:
        """The bounds that a request asks for; they may only lower its cost.

        Raises:
            InvalidRequestError: an unknown setting, or bounds that make no sense or
                would cost more than the checkpoint's own.
        """
        given = _given(settings)
        most = given.get("max_pixels", self.most)
        least = given.get("min_pixels", min(self.least, most))
        if most > self.most:
            raise InvalidRequestError(f"max_pixels is {most}; this model takes at most {self.most}")
        if least > most:
            raise InvalidRequestError(f"min_pixels is {least}, which is more than max_pixels, {most}")
        return PixelBounds(least, most)

    def shared(
        self, frame_count: int, token_count: int, factor: int, temporal_patch_size: int
    ) -> PixelBounds:
        """The bounds of each of a video's frames, which have a budget together.

        What a frame may have never falls below 1.05 times the least.

        Args:
            token_count: of the whole video and its text.
            factor: side of a token in pixels.
        """
        pixels = int(token_count * factor * factor * _USABLE)
        share = min(self.most, pixels * temporal_patch_size // frame_count)
        return PixelBounds(self.least, max(share, int(self.least * 1.05)))

    def capped(self, frame_count: int, frame_pixels: int) -> PixelBounds:
        """The bounds of all frames of a video together, none of which may have more than `frame_pixels`.

        What a frame may have never falls below 1.05 times the least.
        """
        share = max(min(frame_pixels, self.most // frame_count), int(self.least * 1.05))
        return PixelBounds(self.least, share * frame_count)

    def fit_clip(self, frame_count: int, height: int, width: int, factor: int, depth: int) -> tuple[int, int]:
        """As `fit`, for bounds that hold for all frames of a video together, counted in groups of `depth`.

        Raises:
            BadMediaError: one side is too long for the other.
        """
        if min(height, width) < factor:
            scale = factor / min(height, width)
            height, width = int(height * scale), int(width * scale)
        _check_shape(height, width)
        rows, columns = round(height / factor), round(width / factor)
        volume = round(frame_count / depth) * depth * rows * columns * factor**2
        pixels = frame_count * height * width
        if volume > self.most:
            shrink = math.sqrt(pixels / self.most)
            rows, columns = (max(1, math.floor(side / shrink / factor)) for side in (height, width))
        elif volume < self.least:
            grow = math.sqrt(self.least / pixels)
            rows, columns = (math.ceil(side * grow / factor) for side in (height, width))
        return rows * factor, columns * factor

    def fit(self, height: int, width: int, factor: int) -> tuple[int, int]:
        """Height and width near these, multiples of `factor`, of about the same shape.

        Raises:
            BadMediaError: one side is too long for the other.
        """
        _check_shape(height, width)
        # Python's rounding, half to even.
        rows, columns = round(height / factor), round(width / factor)
        if rows * columns * factor**2 > self.most:
            shrink = math.sqrt(height * width / self.most)
            rows, columns = (max(1, math.floor(side / shrink / factor)) for side in (height, width))
        elif rows * columns * factor**2 < self.least:
            grow = math.sqrt(self.least / (height * width))
            rows, columns = (math.ceil(side * grow / factor) for side in (height, width))
        return rows * factor, columns * factor


def _check_shape(height: int, width: int) -> None:
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise BadMediaError(
            f"the frames are {width} x {height} pixels; one side may be at most"
            f" {MAX_ASPECT_RATIO} times the other"
        )


def _given(settings: Mapping[str, Any]) -> dict[str, int]:
    """`min_pixels` and `max_pixels`, as far as the settings say them in either way."""
    for name in settings:
        if name not in SETTINGS:
            raise InvalidRequestError(f"unknown processor setting {name!r}; there are {', '.join(SETTINGS)}")
    size = settings.get("size", {})
    if not isinstance(size, Mapping) or not set(size) <= {"shortest_edge", "longest_edge"}:
        raise InvalidRequestError("size has shortest_edge and longest_edge, both numbers of pixels")
    named = {name: value for name, value in settings.items() if name != "size"}
    edges = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
    named |= {edges[edge]: value for edge, value in size.items()}
    return {name: _pixels(name, value) for name, value in named.items()}


def _pixels(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidRequestError(f"{name} is a whole number of at least 1")
    return value
