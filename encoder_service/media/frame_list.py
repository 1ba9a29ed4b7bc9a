"""A video that came as a list of pictures.

Knows `FrameList` and the limits of videos. Does not know how a picture is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from encoder_service.media.picture import decode_picture
from encoder_service.media.video_limits import VideoLimits, check_total
from encoder_service.media.video_sampling import Sampling
from protos.media.v1 import media_pb2
from shared.errors import BadMediaError, MediaTooLargeError
from shared.families.base import VideoClip

_DEFAULT_RATE = 1.0
_MAX_RATE = 1000.0
_MAX_FRAME_COUNT = 1 << 31


def decode_frame_list(payload: bytes, sampling: Sampling, limits: VideoLimits) -> VideoClip:
    """Decodes the pictures of a serialised `FrameList` that `sampling` chooses.

    Raises:
        MediaTooLargeError: more, or larger, pictures than allowed.
        UnsupportedMediaError: pictures of a format that is not accepted.
        BadMediaError: no pictures, a broken one, pictures of several sizes, or
            places and rates that make no sense.
    """
    message = media_pb2.FrameList()
    try:
        message.ParseFromString(payload)
    except DecodeError:
        raise BadMediaError("the list of frames cannot be read") from None
    if not message.frames:
        raise BadMediaError("the video has no frames")
    if len(message.frames) > limits.max_frame_count:
        raise MediaTooLargeError(
            f"the list has {len(message.frames)} frames; at most {limits.max_frame_count} are accepted"
        )
    rate = message.frames_per_second or _DEFAULT_RATE
    if not 0 < rate <= _MAX_RATE:
        raise BadMediaError(f"frames_per_second lies above 0 and up to {_MAX_RATE:g}")
    places, frame_count = _places(message)
    if frame_count / rate > limits.max_duration_s:
        raise MediaTooLargeError(
            f"the video lasts {frame_count / rate:.0f} s; at most {limits.max_duration_s:g} s are accepted"
        )
    chosen = sampling.indices([place / rate for place in places])
    frames = _decoded([message.frames[place] for place in chosen], limits)
    return VideoClip(frames, tuple(places[place] for place in chosen), frame_count, rate)


def _places(message: media_pb2.FrameList) -> tuple[Sequence[int], int]:
    """Each frame's place in the whole video, and the frames of that."""
    places = list(message.indices) or list(range(len(message.frames)))
    frame_count = message.frame_count or len(message.frames)
    rising = all(before < after for before, after in pairwise(places))
    if len(places) != len(message.frames) or not rising:
        raise BadMediaError("indices are as many as frames, and each is larger than the one before")
    if places[0] < 0 or not places[-1] < frame_count <= _MAX_FRAME_COUNT:
        raise BadMediaError("indices lie between 0 and frame_count")
    return places, frame_count


def _decoded(pictures: Sequence[bytes], limits: VideoLimits) -> npt.NDArray[np.uint8]:
    frames: npt.NDArray[np.uint8] | None = None
    for number, payload in enumerate(pictures):
        picture = decode_picture(payload, limits.max_frame_pixel_count)
        if frames is None:
            check_total(len(pictures), picture.width, picture.height, limits)
            frames = np.empty((len(pictures), picture.height, picture.width, 3), np.uint8)
        if (picture.height, picture.width) != frames.shape[1:3]:
            raise BadMediaError("all frames of a video have one size")
        frames[number] = np.asarray(picture)
    assert frames is not None, "a sampling chooses at least one"
    return frames
