"""Recordings in worker processes: what crosses, what is refused, and what a hostile file costs."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from encoder_service.media.messages import Job
from encoder_service.media.pool import WorkerPool
from encoder_service.media.sound_limits import SoundLimits
from encoder_service.media.worker import WorkerLimits
from shared.errors import BadMediaError, InvalidRequestError, MediaTooLargeError, PerceptError
from shared.families.base import Features, Modality
from tests.unit.encoder_service.obedient import make_obedient
from tests.unit.encoder_service.sounds import made, muxed, tone, wave_header, written
from tests.unit.encoder_service.test_sound import REFUSED
from tests.unit.encoder_service.test_video_workers import mutate
from tests.unit.encoder_service.videos import make_video

LIMITS = WorkerLimits(
    time_limit_s=30.0,
    memory_byte_count=600_000_000,
    max_pixel_count=1_000_000,
    sound=SoundLimits(time_limit_s=4.0, max_duration_s=60.0, max_sample_count=20_000_000),
)
MUTATIONS_PER_KIND = 60


def job(modality: Modality = "audio", **settings: Any) -> Job:
    return Job("file", settings=json.dumps(settings) if settings else "", modality=modality)


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(make_obedient, 2, LIMITS)
    await pool.start()
    yield pool
    await pool.close()


async def run(pool: WorkerPool, work: Job, payload: bytes) -> Features:
    result = await pool.run(work, payload)
    assert isinstance(result, Features)
    return result


async def test_samples_cross_as_they_are(pool: WorkerPool) -> None:
    samples = tone(0.5)
    features = await run(pool, job(), written(samples, kind="wav float"))
    np.testing.assert_array_equal(features.arrays["samples"], samples[:, 0].astype(np.float32))
    assert features.arrays["rate"].tolist() == [16_000]
    assert features.info.duration == 0.5


async def test_a_video_brings_its_sound_where_it_is_asked_for(pool: WorkerPool) -> None:
    payload = muxed(tone(1.0, 44_100, 2), 44_100, "mp4 aac", video=True)
    alone = await run(pool, job(), payload)
    with_sound = await run(pool, job("video", use_audio_in_video=True), payload)
    np.testing.assert_array_equal(with_sound.arrays["sound"], alone.arrays["samples"])
    assert with_sound.arrays["frames"].shape == (10, 48, 64, 3)
    for settings in ({}, {"use_audio_in_video": False}):
        assert "sound" not in (await run(pool, job("video", **settings), payload)).arrays
    silent = await run(pool, job("video", use_audio_in_video=True), make_video(4))
    assert "sound" not in silent.arrays
    with pytest.raises(InvalidRequestError) as caught:
        await run(pool, job("video", use_audio_in_video="yes"), payload)
    assert caught.value.param == "item.settings.use_audio_in_video"


async def test_the_sound_of_a_video_has_limits_too(pool: WorkerPool) -> None:
    long = muxed(tone(61.0, 8_000), 8_000, "mp4 aac", video=True)
    await run(pool, job("video"), long)
    with pytest.raises(MediaTooLargeError, match="longer than 60 s"):
        await run(pool, job("video", use_audio_in_video=True), long)


async def test_settings_that_make_no_sense_are_named(pool: WorkerPool) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await run(pool, job(unheard_of=1), written(tone()))
    assert type(caught.value) is InvalidRequestError
    assert caught.value.param == "item.settings.unheard_of"


async def test_a_recording_has_its_own_time(pool: WorkerPool) -> None:
    with pytest.raises(BadMediaError, match="longer than 4 s"):
        await run(pool, job(sleep=30), written(tone()))
    await run(pool, job(), written(tone()))


async def test_bombs_end_in_a_refusal_and_the_workers_go_on(pool: WorkerPool) -> None:
    """Hours in a small file, a header that claims gigabytes, and a low rate that grows when resampled."""
    hours = written(np.zeros((2_000_000, 1)), 8_000, "flac")
    assert len(hours) < 20_000
    low = wave_header(bytes(200_000), rate=1_000, bits=8)
    high = written(np.zeros((4_000_000, 6)), 192_000, "flac")
    for payload in (hours, low, high):
        with pytest.raises(MediaTooLargeError, match="accepted"):
            await run(pool, job(), payload)
    pids = {worker._process.pid for worker in pool._workers if worker._process is not None}
    await run(pool, job(), written(tone()))
    assert pids == {worker._process.pid for worker in pool._workers if worker._process is not None}


async def test_memory_is_bounded() -> None:
    limits = replace(
        LIMITS,
        memory_byte_count=30_000_000,
        sound=SoundLimits(max_duration_s=65_536, max_sample_count=10**12),
    )
    small = WorkerPool(make_obedient, 1, limits)
    await small.start()
    try:
        with pytest.raises(MediaTooLargeError, match="memory"):
            await run(small, job(), written(np.zeros((12_000_000, 1)), 16_000, "flac"))
        await run(small, job(), written(tone()))
    finally:
        await small.close()


async def test_what_is_no_recording_is_refused(pool: WorkerPool) -> None:
    for name, (make, kind, _) in REFUSED.items():
        payload = make()
        if payload:
            with pytest.raises(kind):
                await run(pool, job(), payload)
            assert pool.lost_worker_count == 0, name
    await run(pool, job(), written(tone()))


@pytest.mark.parametrize(
    "kind",
    [
        *("wav 16", "wav adpcm", "flac", "ogg vorbis", "ogg opus", "mp3", "aiff", "caf", "w64", "rf64", "au"),
        *("m4a aac", "m4a alac", "mov pcm", "webm opus", "mkv flac", "mkv ac3", "aac"),
    ],
)
async def test_mutated_files_end_in_samples_or_in_a_refusal(pool: WorkerPool, kind: str) -> None:
    random_source = random.Random(kind)
    whole = made(kind, tone(0.5, 48_000, 2), 48_000)

    async def one(payload: bytes) -> None:
        try:
            features = await run(pool, job(), payload)
        except PerceptError as error:
            assert isinstance(error, BadMediaError), error
            assert "0x" not in error.message and "av_" not in error.message
        else:
            assert np.isfinite(features.arrays["samples"]).all()

    mutated = [mutate(random_source, whole) for _ in range(MUTATIONS_PER_KIND)]
    await asyncio.gather(*(one(payload) for payload in mutated))
    await run(pool, job(), whole)
    assert pool.lost_worker_count == 0


def test_decoding_needs_nothing_heavy() -> None:
    """No torch, no numba, no SciPy: every worker has what is imported here."""
    probe = (
        "import sys, encoder_service.media.sound, encoder_service.media.sound_track\n"
        "print({'torch', 'numba', 'scipy', 'librosa', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"
