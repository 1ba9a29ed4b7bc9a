"""Recordings: every accepted kind gives the samples that librosa gives, and all else is refused."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr

from encoder_service.media.sound import decode_sound, decode_track
from encoder_service.media.sound_limits import SoundLimits
from shared.errors import BadMediaError, MediaTooLargeError, UnsupportedMediaError
from tests.unit.encoder_service.sounds import (
    LOSSLESS,
    MUXED,
    RATE,
    WRITTEN,
    kinds,
    made,
    muxed,
    tone,
    wave_header,
    written,
)
from tests.unit.encoder_service.videos import make_video

LIMITS = SoundLimits()

Samples = npt.NDArray[np.float32]


def decoded(payload: bytes, rate: int = RATE) -> Samples:
    clip = decode_sound(payload, rate, LIMITS)
    assert clip.sampling_rate == rate
    assert clip.samples.dtype == np.float32
    assert clip.samples.ndim == 1 and len(clip.samples) >= 1
    return clip.samples


def in_one_go(payload: bytes, rate: int) -> Samples:
    """What `librosa.load(file, sr=rate, mono=True)` does, step by step."""
    values, own = soundfile.read(io.BytesIO(payload), dtype="float32", always_2d=True)
    mixed = values[:, 0] if values.shape[1] == 1 else np.mean(values.T, axis=0)
    if own == rate:
        return mixed
    changed = soxr.resample(mixed, own, rate, quality="soxr_hq")
    count = math.ceil(len(mixed) * (rate / own))
    return np.pad(changed, (0, max(0, count - len(changed))))[:count]


def writable() -> Iterator[tuple[str, int, int]]:
    """Kinds, rates and channels of files that libsndfile writes."""
    for kind, rate, channels in product(WRITTEN, [8_000, 16_000, 44_100, 48_000, 192_000], [1, 2, 6]):
        opus_lacks = kind == "ogg opus" and rate not in (8_000, 16_000, 48_000)
        mp3_lacks = kind == "mp3" and (channels > 2 or rate > 48_000)
        if not (opus_lacks or mp3_lacks or (kind == "wav adpcm" and channels > 2)):
            yield kind, rate, channels


@pytest.mark.parametrize(("kind", "rate", "channels"), list(writable()))
def test_samples_are_librosas(kind: str, rate: int, channels: int) -> None:
    payload = written(tone(0.3, rate, channels), rate, kind)
    for wanted in (RATE, 24_000):
        # The MP3 decoder rounds by where in memory it writes.
        np.testing.assert_allclose(
            decoded(payload, wanted), in_one_go(payload, wanted), rtol=0, atol=3e-7 if kind == "mp3" else 0
        )


@pytest.mark.parametrize("kind", kinds())
def test_the_tone_is_heard(kind: str) -> None:
    rate = 48_000 if "ac3" in kind or "opus" in kind else 44_100
    samples = decoded(made(kind, tone(1.0, rate, 2), rate))
    expected = soxr.resample(tone(1.0, rate, 2).mean(axis=1).astype(np.float32), rate, RATE)
    if kind in LOSSLESS:
        assert len(samples) == RATE
        np.testing.assert_allclose(samples, expected, atol=1e-4)
    assert RATE <= len(samples) + 100 <= RATE * 1.2
    spectrum = np.abs(np.fft.rfft(samples[:RATE]))
    assert abs(int(spectrum.argmax()) - 440) <= 1, kind
    assert 0.8 < np.abs(samples).max() / np.abs(expected).max() < 1.2


def test_long_recordings_are_resampled_as_in_one_go() -> None:
    """Over several pieces, that is: the resampler keeps its state from one to the next."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (300_001, 2))
    payload = written(noise, 44_100, "wav float")
    np.testing.assert_array_equal(decoded(payload), in_one_go(payload, RATE))


@pytest.mark.parametrize("rate", [8_000, 16_000, 192_000])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_few_samples(rate: int, count: int) -> None:
    samples = decoded(written(np.full((count, 1), 0.25), rate, "wav float"))
    assert len(samples) == math.ceil(count * RATE / rate)


def test_silence() -> None:
    assert not decoded(written(np.zeros((RATE, 6)), RATE, "flac")).any()


def test_names_and_declared_formats_do_not_count() -> None:
    """MP3 with tags, with a picture in them, with zeros behind them; AAC; FLAC behind ID3."""
    tag = b"ID3\x04\x00\x00" + struct.pack(">I", 0x00000200)[:4] + bytes(256)
    for kind in ("mp3", "flac"):
        plain = made(kind, tone(1.0))
        np.testing.assert_array_equal(decoded(tag + plain), decoded(plain))


def test_streamed_wave_files_do_not_know_their_length() -> None:
    values = (tone(0.25)[:, 0] * 32767).astype("<i2")
    samples = decoded(wave_header(values.tobytes(), size=0xFFFFFFFF))
    np.testing.assert_array_equal(samples, values / np.float32(32768))


@pytest.mark.parametrize("kind", ["wav float", "wav double", "caf", "au"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e20])
def test_what_is_no_number_is_refused(kind: str, value: float) -> None:
    samples = tone(0.1, channels=2)
    samples[77, 1] = value
    if kind in ("caf", "au"):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples.astype(np.float32), RATE, format=kind.upper(), subtype="FLOAT")
        payload = buffer.getvalue()
    else:
        payload = written(samples, RATE, kind)
    with pytest.raises(BadMediaError, match="no numbers"):
        decoded(payload)


def test_louder_than_full_scale_is_taken_as_it_is() -> None:
    samples = decoded(written(tone(0.1) * 1000, RATE, "wav float"))
    assert 290 < samples.max() <= 300


REFUSED: dict[str, tuple[Callable[[], bytes], type[BadMediaError], str]] = {
    "nothing": (lambda: b"", BadMediaError, "no audio"),
    "text": (lambda: b"This is not a recording, whatever its name says. " * 50, BadMediaError, "no audio"),
    "zeros": (lambda: bytes(5000), BadMediaError, "no audio"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(99), UnsupportedMediaError, "PNG"),
    "a playlist": (lambda: b"#EXTM3U\nhttp://127.0.0.1/x.mp3\n", UnsupportedMediaError, "playlist"),
    "Windows Media": (lambda: b"0&\xb2u\x8ef\xcf\x11" + bytes(99), UnsupportedMediaError, "Windows Media"),
    "a wave file's head alone": (lambda: wave_header(b"")[:30], BadMediaError, "broken"),
    "a wave file without samples": (lambda: written(tone(0.0)), BadMediaError, "no samples"),
    "text in a wave file": (
        lambda: b"RIFF\x00\x01\x00\x00WAVE" + b"text " * 99,
        BadMediaError,
        "broken|not accepted|a second",
    ),
    "a codec that no one knows": (
        lambda: wave_header(bytes(99), form=0x9999),
        BadMediaError,
        "broken|not accepted|a second",
    ),
    "no channels": (
        lambda: wave_header(bytes(100), channels=0),
        BadMediaError,
        "broken|not accepted|a second",
    ),
    "a rate of none": (
        lambda: wave_header(bytes(100), rate=0),
        BadMediaError,
        "broken|not accepted|a second",
    ),
    "a rate of 3 a second": (lambda: wave_header(bytes(100), rate=3), BadMediaError, "3 samples a second"),
    "a rate of billions": (
        lambda: wave_header(bytes(100), rate=2_000_000_000),
        BadMediaError,
        "broken|not accepted|a second",
    ),
    "a thousand channels": (lambda: wave_header(bytes(4000), channels=1000), BadMediaError, "channels"),
    "a video without sound": (lambda: make_video(4), BadMediaError, "no audio stream"),
    "an animation": (
        lambda: make_video(4, container="gif", codec="gif", pixels="rgb8"),
        UnsupportedMediaError,
        "GIF",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_recording_is_refused(name: str) -> None:
    make, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text) as caught:
        decoded(make())
    assert "0x" not in caught.value.message


@pytest.mark.parametrize(
    "kind", ["wav 16", "wav float", "wavex", "aiff", "flac", "mp4 aac", "mov pcm", "m4a alac", "mkv flac"]
)
def test_cut_files_are_refused(kind: str) -> None:
    payload = made(kind, tone(1.0))
    with pytest.raises(BadMediaError, match=r"truncated|broken"):
        decoded(payload[: len(payload) * 2 // 3])


def test_the_sound_of_a_video() -> None:
    payload = muxed(tone(1.0, 44_100, 2), 44_100, "mp4 aac", video=True)
    samples = decoded(payload)
    clip = decode_track(payload, RATE, LIMITS)
    assert clip is not None
    np.testing.assert_array_equal(clip.samples, samples)
    assert decode_track(make_video(4), RATE, LIMITS) is None


def test_seconds_are_counted_while_it_is_decoded() -> None:
    """Of a format that says its length, and of those that do not."""
    for kind in kinds():
        rate = 48_000
        payload = made(kind, tone(3.0, rate), rate)
        with pytest.raises(MediaTooLargeError, match="longer than 2 s"):
            decode_sound(payload, RATE, SoundLimits(max_duration_s=2))
        decode_sound(payload, RATE, SoundLimits(max_duration_s=3.3))


def test_samples_are_counted_with_all_channels() -> None:
    payload = written(tone(1.0, channels=6), RATE, "flac")
    decode_sound(payload, RATE, SoundLimits(max_sample_count=6 * RATE))
    with pytest.raises(MediaTooLargeError, match="samples"):
        decode_sound(payload, RATE, SoundLimits(max_sample_count=6 * RATE - 1))


def test_a_small_file_of_many_hours_is_left_early() -> None:
    """Silence in Opus: 10 hours in few bytes. Decoding stops at the bound, long before the end."""
    hour = written(np.zeros((1_800_000, 1)), 8_000, "ogg opus")
    assert len(hour) < 300_000
    with pytest.raises(MediaTooLargeError, match="longer than 1 s"):
        decode_sound(hour, RATE, SoundLimits(max_duration_s=1))


def test_all_kinds_were_made() -> None:
    assert len(kinds()) == len(WRITTEN) + len(MUXED)
