"""The sound track of a file that libav reads: containers, and AAC by itself.

Knows PyAV's streams and sample formats. Does not know rates that are wanted, nor
how channels are mixed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import av
import av.logging
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from encoder_service.media.sound_limits import Meter, NoSoundError, SoundLimits
from shared.errors import BadMediaError, UnsupportedMediaError

Piece: TypeAlias = npt.NDArray[np.float32]

# Codecs that a payload can reach, and decoders for them, libav's names.
_CODECS = frozenset(
    {
        *("aac", "aac_latm", "mp1", "mp2", "mp3", "opus", "vorbis", "flac", "alac", "ac3", "eac3"),
        *("pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be"),
        *("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw", "adpcm_ima_qt"),
        *("amr_nb", "amr_wb"),
    }
)
_DECODERS = _CODECS | {"mp1float", "mp2float", "mp3float", "libopus", "amrnb", "amrwb"}
_ACCEPTED_CODECS = "AAC, MP3, Opus, Vorbis, FLAC, ALAC, AC-3, AMR and PCM are accepted"

_FULL_SCALES = {"u8": 128, "s16": 1 << 15, "s32": 1 << 31, "s64": 1 << 63, "flt": 1, "dbl": 1}
"""By sample format: the number that full scale is."""

_MAX_STREAMS = 32
_OPEN_OPTIONS = {
    "max_streams": str(_MAX_STREAMS + 1),
    "codec_whitelist": ",".join(sorted(_DECODERS)),
    # The file is here whole: nothing that it points to is opened.
    "protocol_whitelist": "none",
    "enable_drefs": "0",
}


@contextmanager
def open_track(
    payload: bytes, container: str, limits: SoundLimits
) -> Iterator[tuple[Meter, Iterator[Piece]]]:
    """Opens a file's first sound track.

    Args:
        container: libav's name.

    Gives what counts its samples, and pieces float32 (samples, channels), full scale at 1.

    Raises:
        UnsupportedMediaError: a codec that is not accepted.
        BadMediaError: no sound track.
    """
    # libav's own lines are for nobody.
    av.logging.set_level(None)
    options = _OPEN_OPTIONS if container != "aac" else {"codec_whitelist": _OPEN_OPTIONS["codec_whitelist"]}
    with av.open(
        io.BytesIO(payload), "r", format=container, container_options=options, metadata_errors="replace"
    ) as opened:
        stream = _chosen(opened)
        context = stream.codec_context
        meter = Meter(context.sample_rate, context.channels, limits)
        yield meter, _pieces(opened, stream, meter)


def _chosen(opened: InputContainer) -> AudioStream:
    if not opened.streams.audio:
        raise NoSoundError("the file has no audio stream")
    stream = opened.streams.audio[0]
    context = stream.codec_context
    name = context.codec.canonical_name if context is not None else "unknown"
    if name not in _CODECS:
        raise UnsupportedMediaError(f"{name} audio is not accepted; {_ACCEPTED_CODECS}")
    context.thread_count = 1
    return stream


def _pieces(opened: InputContainer, stream: AudioStream, meter: Meter) -> Iterator[Piece]:
    for frame in opened.decode(stream):
        if frame.sample_rate != meter.sampling_rate or len(frame.layout.channels) != meter.channel_count:
            raise BadMediaError("the recording changes its rate or its channels in the middle")
        if frame.is_corrupt:
            raise BadMediaError("the recording is broken: a part of it cannot be decoded whole")
        meter.add(frame.samples)
        yield _numbers(frame)


def _numbers(frame: AudioFrame) -> Piece:
    """Samples (samples, channels) as numbers whose full scale is 1."""
    values = frame.to_ndarray()
    scale = _FULL_SCALES[frame.format.packed.name]
    # Planar frames come as (channels, samples), others as one row of all samples in turn.
    laid_out = values.T if frame.format.is_planar else values.reshape(-1, len(frame.layout.channels))
    if frame.format.packed.name == "u8":
        return (laid_out.astype(np.float32) - np.float32(scale)) / np.float32(scale)
    return laid_out.astype(np.float32) / np.float32(scale) if scale != 1 else laid_out.astype(np.float32)
