"""Makes videos of every kind that is accepted, and of some that are not, with PyAV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

SIZE = (64, 48)
"""Width and height."""

KINDS: dict[str, dict[str, Any]] = {
    "mp4 h264": {"container": "mp4", "codec": "libx264"},
    "mp4 h264 open": {
        "container": "mp4",
        "codec": "libx264",
        "options": {"x264-params": "keyint=8:min-keyint=8:scenecut=0:open-gop=1:bframes=3:b-adapt=0"},
    },
    "mp4 hevc": {
        "container": "mp4",
        "codec": "libx265",
        "options": {"x265-params": "log-level=none:keyint=8"},
    },
    "mov mpeg4": {"container": "mov", "codec": "mpeg4", "options": {"bf": "2", "g": "6"}},
    "mov prores": {"container": "mov", "codec": "prores", "pixels": "yuv422p10le"},
    "mov mjpeg": {"container": "mov", "codec": "mjpeg", "pixels": "yuvj420p"},
    "webm vp8": {
        "container": "webm",
        "codec": "libvpx",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "8"},
    },
    "webm vp9": {"container": "webm", "codec": "libvpx-vp9", "options": {"g": "10"}},
    "mkv h264": {"container": "matroska", "codec": "libx264", "options": {"g": "7"}},
    "gif": {"container": "gif", "codec": "gif", "pixels": "rgb8"},
}


def level(place: int) -> int:
    """The brightness that tells a frame's place."""
    return 16 + place * 7 % 224


def picture(place: int, size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """RGB (height, width, 3): grey of the frame's level, the upper left quarter white."""
    pixels = np.full((size[1], size[0], 3), level(place), np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = 255
    return pixels


def make_video(
    count: int = 20,
    *,
    container: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    rate: int = 10,
    size: tuple[int, int] = SIZE,
    rotation: int = 0,
    stamps: Sequence[int] | None = None,
    frames: Sequence[npt.NDArray[np.uint8]] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """Encodes frames.

    Args:
        rotation: counter-clockwise degrees that a player turns them by.
        stamps: of each frame, in 1/rate seconds; default: 0, 1, 2, ...
        frames: RGB or RGBA (height, width, channels); default: `picture` of each place.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container, container_options=container_options or {}) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        if rotation:
            stream.set_display_rotation(rotation)
        for place in range(count if frames is None else len(frames)):
            array = picture(place, size) if frames is None else frames[place]
            frame = av.VideoFrame.from_ndarray(array, "rgba" if array.shape[2] == 4 else "rgb24")
            frame.pts = place if stamps is None else stamps[place]
            frame.time_base = Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def make_sound(container: str = "mp4") -> bytes:
    """A file with sound alone."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()
