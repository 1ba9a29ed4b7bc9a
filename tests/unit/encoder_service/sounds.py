"""Makes recordings of every kind that is accepted, and of some that are not, with libsndfile and PyAV."""

from __future__ import annotations

import io
import struct
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile

Samples = npt.NDArray[np.float64]

RATE = 16_000

WRITTEN: dict[str, dict[str, Any]] = {
    # By libsndfile: name, format and subtype.
    "wav 16": {"format": "WAV", "subtype": "PCM_16"},
    "wav 8": {"format": "WAV", "subtype": "PCM_U8"},
    "wav 24": {"format": "WAV", "subtype": "PCM_24"},
    "wav 32": {"format": "WAV", "subtype": "PCM_32"},
    "wav float": {"format": "WAV", "subtype": "FLOAT"},
    "wav double": {"format": "WAV", "subtype": "DOUBLE"},
    "wav a-law": {"format": "WAV", "subtype": "ALAW"},
    "wav mu-law": {"format": "WAV", "subtype": "ULAW"},
    "wav adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "wav big-endian": {"format": "WAV", "subtype": "PCM_16", "endian": "BIG"},
    "wavex": {"format": "WAVEX", "subtype": "PCM_24"},
    "rf64": {"format": "RF64", "subtype": "PCM_16"},
    "w64": {"format": "W64", "subtype": "PCM_16"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "flac 24": {"format": "FLAC", "subtype": "PCM_24"},
    "ogg vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "ogg opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    "aiff": {"format": "AIFF", "subtype": "PCM_16"},
    "caf": {"format": "CAF", "subtype": "PCM_16"},
    "au": {"format": "AU", "subtype": "PCM_16"},
}

MUXED: dict[str, dict[str, Any]] = {
    # By libav: container and codec.
    "m4a aac": {"container": "ipod", "codec": "aac"},
    "mp4 aac": {"container": "mp4", "codec": "aac"},
    "mov pcm": {"container": "mov", "codec": "pcm_s16le", "form": "s16"},
    "mov pcm float": {"container": "mov", "codec": "pcm_f32le", "form": "flt"},
    "m4a alac": {"container": "ipod", "codec": "alac", "form": "s16p"},
    "webm opus": {"container": "webm", "codec": "libopus", "form": "flt"},
    "mkv flac": {"container": "matroska", "codec": "flac", "form": "s16"},
    "mkv mp3": {"container": "matroska", "codec": "libmp3lame", "form": "fltp"},
    "mkv ac3": {"container": "matroska", "codec": "ac3", "form": "fltp"},
    "aac": {"container": "adts", "codec": "aac"},
}

LOSSLESS = frozenset(
    {
        *("wav 24", "wav 32", "wav float", "wav double", "wavex", "flac 24"),
        *("wav 16", "wav big-endian", "rf64", "w64", "flac", "aiff", "caf", "au"),
        *("mov pcm", "mov pcm float", "m4a alac", "mkv flac"),
    }
)
"""Kinds that keep at least 16 bits of every sample."""


def tone(seconds: float = 0.5, rate: int = RATE, channels: int = 1, pitch: float = 440.0) -> Samples:
    """A tone, louder in each further channel, (samples, channels)."""
    time = np.arange(round(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * pitch * time)
    return np.stack([wave * 0.3 * (channel + 1) / channels for channel in range(channels)], axis=1)


def written(samples: npt.NDArray[Any], rate: int = RATE, kind: str = "wav 16") -> bytes:
    """A file by libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **WRITTEN[kind])
    return buffer.getvalue()


def muxed(samples: Samples, rate: int = RATE, kind: str = "m4a aac", *, video: bool = False) -> bytes:
    """A file by libav.

    Args:
        video: with ten frames of a picture in front of the sound.
    """
    made = MUXED[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=made["container"]) as output:
        shown: Any = None
        if video:
            shown = output.add_stream("libx264", rate=10)
            shown.width, shown.height, shown.pix_fmt = 64, 48, "yuv420p"
        heard: Any = output.add_stream(made["codec"], rate=rate, layout=_layout(samples.shape[1]))
        if video:
            for _ in range(10):
                picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
                output.mux(shown.encode(picture))
            output.mux(shown.encode(None))
        for frame in _frames(samples, rate, made.get("form", "fltp")):
            output.mux(heard.encode(frame))
        output.mux(heard.encode(None))
    return buffer.getvalue()


def kinds() -> list[str]:
    """All kinds that are accepted."""
    return [*WRITTEN, *MUXED]


def made(kind: str, samples: Samples, rate: int = RATE) -> bytes:
    """A file of any kind."""
    return written(samples, rate, kind) if kind in WRITTEN else muxed(samples, rate, kind)


def wave_header(
    data: bytes,
    *,
    rate: int = RATE,
    channels: int = 1,
    bits: int = 16,
    size: int | None = None,
    form: int = 1,
) -> bytes:
    """A WAV file by hand, whose data chunk may claim any size."""
    claimed = len(data) if size is None else size
    block = channels * bits // 8
    head = struct.pack("<HHIIHH", form, channels, rate, rate * block % 2**32, block, bits)
    whole = claimed if claimed in (0, 0xFFFFFFFF) else min(36 + claimed, 2**32 - 1)
    return (
        b"RIFF"
        + struct.pack("<I", whole)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + head
        + b"data"
        + struct.pack("<I", claimed)
        + data
    )


def _layout(channels: int) -> str:
    return {1: "mono", 2: "stereo", 6: "5.1"}[channels]


def _frames(samples: Samples, rate: int, form: str) -> list[av.AudioFrame]:
    scale = {"s16": 32767, "s16p": 32767}.get(form)
    values = (samples * scale).round().astype(np.int16) if scale else samples.astype(np.float32)
    frames = []
    for start in range(0, len(values), 1024):
        piece = values[start : start + 1024]
        array = piece.T if form.endswith("p") else piece.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(array), format=form, layout=_layout(samples.shape[1])
        )
        frame.sample_rate, frame.pts = rate, start
        frames.append(frame)
    return frames
