"""Encoded recordings to mono samples at one rate, with limits that hold on the way.

Knows libsndfile, libav and the resampler. Does not know models, nor where it runs:
the caller gives it a process that may die.

A recording is decoded in pieces, which are mixed down and resampled as they come,
so that what it takes is bounded by what comes out. The numbers are those that
`librosa.load(file, sr=rate, mono=True)` gives for the same file.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from encoder_service.media.sound_format import ACCEPTED, SoundFormat, check_whole, cut_short, format_of
from encoder_service.media.sound_limits import Meter, NoSoundError, SoundLimits
from shared.errors import BadMediaError, MediaTooLargeError, PerceptError, UnsupportedMediaError
from shared.families.base import AudioClip

_PIECE_LENGTH = 1 << 16
"""Samples of each channel that are decoded at once."""

_LOUDEST = 1e6
"""Largest sample of a file of floating-point numbers. Full scale is 1, but some hold 16-bit numbers."""

_UNSUPPORTED_ENCODINGS = frozenset({1, 4})
"""libsndfile's numbers for a format or an encoding that it does not read."""

_EXACT = frozenset({"FLAC"})
"""Formats whose header tells how many samples there are, and whose libraries do not check."""

_STANDARD_ERROR = 2

Piece = npt.NDArray[np.float32]


def decode_sound(payload: bytes, sampling_rate: int, limits: SoundLimits) -> AudioClip:
    """Decodes a recording: mixed down to one channel, resampled.

    Args:
        payload: the file; of a video, its first sound track is taken.
        sampling_rate: samples a second that are wanted.

    Raises:
        MediaTooLargeError: longer or of more samples than allowed.
        UnsupportedMediaError: a format or encoding that is not accepted.
        BadMediaError: no recording, a broken or truncated one, or one without samples.
    """
    with _own_errors():
        found = format_of(payload)
        check_whole(payload, found)
        return AudioClip(_samples(payload, found, sampling_rate, limits), sampling_rate)


def decode_track(payload: bytes, sampling_rate: int, limits: SoundLimits) -> AudioClip | None:
    """Decodes a video's first sound track, as `decode_sound` does; None where it has none, or an empty one.

    Args:
        payload: the file, whose frames were decoded already.

    Raises:
        MediaTooLargeError, UnsupportedMediaError, BadMediaError: see `decode_sound`.
    """
    from encoder_service.media.sound_track import open_track
    from encoder_service.media.video_container import container_of

    container = container_of(payload)
    if container == "gif":
        return None
    with _own_errors():
        try:
            with open_track(payload, container, limits) as (meter, pieces):
                return AudioClip(resampled(meter, pieces, sampling_rate), sampling_rate)
        except NoSoundError:
            return None


@contextmanager
def _own_errors() -> Iterator[None]:
    """Libraries name addresses and inner functions: none of that leaves this module."""
    try:
        yield
    except PerceptError:
        raise
    except NoSoundError as found:
        raise BadMediaError(str(found)) from None
    except MemoryError:
        raise MediaTooLargeError("the recording needs more memory than a decoder may use") from None
    except Exception:
        raise _broken() from None


def _samples(payload: bytes, found: SoundFormat, sampling_rate: int, limits: SoundLimits) -> Piece:
    if found.library == "libsndfile":
        return _of_libsndfile(payload, found, sampling_rate, limits)
    from encoder_service.media.sound_track import open_track

    with open_track(payload, found.name, limits) as (meter, pieces):
        return resampled(meter, pieces, sampling_rate)


def _of_libsndfile(payload: bytes, found: SoundFormat, sampling_rate: int, limits: SoundLimits) -> Piece:
    with _silenced():
        return _read_whole(payload, found, sampling_rate, limits)


@contextmanager
def _silenced() -> Iterator[None]:
    """libsndfile's MP3 decoder writes a line to the process's standard error for every broken frame."""
    kept, nowhere = os.dup(_STANDARD_ERROR), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STANDARD_ERROR)
        yield
    finally:
        os.dup2(kept, _STANDARD_ERROR)
        os.close(kept)
        os.close(nowhere)


def _read_whole(payload: bytes, found: SoundFormat, sampling_rate: int, limits: SoundLimits) -> Piece:
    try:
        file = soundfile.SoundFile(io.BytesIO(payload))
    except soundfile.LibsndfileError as error:
        if error.code in _UNSUPPORTED_ENCODINGS:
            raise UnsupportedMediaError(
                f"the encoding inside of this {found.name} file is not accepted; {ACCEPTED}"
            ) from None
        raise _broken() from None
    with file:
        meter = Meter(file.samplerate, file.channels, limits)
        samples = resampled(meter, _pieces(file, meter), sampling_rate)
        if found.name in _EXACT and meter.count < file.frames < 1 << 62:
            raise cut_short()
        return samples


def _pieces(file: soundfile.SoundFile, meter: Meter) -> Iterator[Piece]:
    """Pieces (samples, channels) until the file's end."""
    while len(piece := file.read(_PIECE_LENGTH, dtype="float32", always_2d=True)):
        meter.add(len(piece))
        yield piece


def resampled(meter: Meter, pieces: Iterator[Piece], sampling_rate: int) -> Piece:
    """Mixes pieces (samples, channels) down and brings them to a rate.

    Raises:
        NoSoundError: there are none.
        BadMediaError: samples that are no numbers.
    """
    changed = (
        None
        if meter.sampling_rate == sampling_rate
        else soxr.ResampleStream(meter.sampling_rate, sampling_rate, 1, dtype="float32", quality="HQ")
    )
    parts = []
    for piece in pieces:
        mixed = _mixed(piece)
        parts.append(mixed if changed is None else changed.resample_chunk(mixed))
    if meter.count == 0:
        raise NoSoundError("the recording has no samples")
    if changed is not None:
        parts.append(changed.resample_chunk(np.zeros(0, np.float32), last=True))
    return _fitted(np.concatenate(parts), math.ceil(meter.count * (sampling_rate / meter.sampling_rate)))


def _mixed(piece: Piece) -> Piece:
    """(samples, channels) to (samples,)."""
    mixed = piece[:, 0] if piece.shape[1] == 1 else np.mean(piece.T, axis=0)
    # NaN fails every comparison.
    if not bool((np.abs(mixed) <= _LOUDEST).all()):
        raise BadMediaError("the recording holds samples that are no numbers, or far beyond full scale")
    return np.ascontiguousarray(mixed, np.float32)


def _fitted(samples: Piece, count: int) -> Piece:
    """Exactly `count` samples: the resampler's own count may be off by one."""
    return samples[:count] if len(samples) >= count else np.pad(samples, (0, count - len(samples)))


def _broken() -> BadMediaError:
    return BadMediaError("the recording is broken and cannot be decoded")
