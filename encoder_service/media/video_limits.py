"""What one video may cost, and the refusals of what costs more. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import MediaTooLargeError


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """Bounds on one video, each checked before what it bounds is spent.

    Attributes:
        time_limit_s: seconds until the worker that has it is killed.
        max_duration_s: longest video.
        max_frame_count: most frames that are taken.
        max_frame_pixel_count: largest frame, width x height.
        max_pixel_count: most pixels of all frames that are taken.
        max_decoded_pixel_count: most pixels of all frames that have to be decoded.
    """

    time_limit_s: float = 60.0
    max_duration_s: float = 3600.0
    max_frame_count: int = 768
    max_frame_pixel_count: int = 9_000_000
    max_pixel_count: int = 270_000_000
    max_decoded_pixel_count: int = 40_000_000_000


def check_frame(width: int, height: int, limits: VideoLimits) -> None:
    """Raises MediaTooLargeError for a frame of too many pixels."""
    if width * height > limits.max_frame_pixel_count:
        raise MediaTooLargeError(
            f"the video's frames have {width} x {height} pixels; "
            f"at most {limits.max_frame_pixel_count} in all are accepted"
        )


def check_total(count: int, width: int, height: int, limits: VideoLimits) -> None:
    """Raises MediaTooLargeError for frames that have too many pixels together."""
    if count * width * height > limits.max_pixel_count:
        raise MediaTooLargeError(
            f"{count} frames of {width} x {height} pixels are more than {limits.max_pixel_count} pixels; "
            "send a smaller video, or ask for fewer frames by media_io_kwargs"
        )
