"""Videos in worker processes: what crosses, what is refused, and what a hostile file costs."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from encoder_service.media.messages import Job
from encoder_service.media.pool import WorkerPool
from encoder_service.media.video_limits import VideoLimits
from encoder_service.media.worker import WorkerLimits
from protos.media.v1 import media_pb2
from shared.errors import BadMediaError, InvalidRequestError, MediaTooLargeError, PerceptError
from shared.families.base import Features
from tests.unit.encoder_service.obedient import make_obedient
from tests.unit.encoder_service.test_video import jpeg
from tests.unit.encoder_service.videos import KINDS, make_video, picture

LIMITS = WorkerLimits(
    time_limit_s=30.0,
    memory_byte_count=600_000_000,
    max_pixel_count=1_000_000,
    video=VideoLimits(time_limit_s=5.0, max_frame_count=64),
)
MUTATIONS_PER_KIND = 60


def job(form: Any = "file", **settings: Any) -> Job:
    return Job(form, settings=json.dumps(settings) if settings else "", modality="video")


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


async def test_frames_cross_as_they_are(pool: WorkerPool) -> None:
    features = await run(pool, job(media_io={"num_frames": 4}), make_video(20))
    assert features.arrays["frames"].shape == (4, 48, 64, 3)
    assert features.arrays["frames"].dtype == np.uint8
    assert features.arrays["indices"].tolist() == [0, 6, 12, 19]
    assert features.arrays["whole"].tolist() == [20.0, 10.0]
    assert features.info.timestamps == (0.0, 0.6, 1.2, 1.9)


async def test_lists_of_frames_cross(pool: WorkerPool) -> None:
    frames = [jpeg(picture(place), "PNG") for place in range(3)]
    payload = media_pb2.FrameList(frames=frames, frames_per_second=2).SerializeToString()
    features = await run(pool, job("frames"), payload)
    assert (features.arrays["frames"] == np.stack([picture(place) for place in range(3)])).all()
    assert features.arrays["whole"].tolist() == [3.0, 2.0]


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"media_io": {"num_frames": 0}}, "item.settings.media_io.num_frames"),
        ({"media_io": {"num_frames": 65}}, "item.settings.media_io.num_frames"),
        ({"media_io": {"num_frames": "8"}}, "item.settings.media_io.num_frames"),
        ({"media_io": {"num_frames": True}}, "item.settings.media_io.num_frames"),
        ({"media_io": {"fps": 0}}, "item.settings.media_io.fps"),
        ({"media_io": {"fps": -2}}, "item.settings.media_io.fps"),
        ({"media_io": {"fps": None}}, "item.settings.media_io.fps"),
        ({"media_io": {"backend": "x"}}, "item.settings.media_io"),
        ({"media_io": 3}, "item.settings.media_io"),
        ({"unheard_of": 1}, "item.settings.unheard_of"),
    ],
)
async def test_settings_that_make_no_sense_are_named(
    pool: WorkerPool, settings: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await run(pool, job(**settings), make_video(2))
    assert type(caught.value) is InvalidRequestError
    assert caught.value.param == param


async def test_a_video_has_its_own_time(pool: WorkerPool) -> None:
    with pytest.raises(BadMediaError, match="longer than 5 s"):
        await run(pool, job(sleep=30), make_video(2))
    await run(pool, job(), make_video(2))


async def test_memory_is_bounded() -> None:
    small = WorkerPool(make_obedient, 1, replace(LIMITS, memory_byte_count=50_000_000))
    await small.start()
    try:
        payload = make_video(40, size=(1920, 1080), options={"preset": "ultrafast"})
        with pytest.raises(MediaTooLargeError, match="memory"):
            await run(small, job(), payload)
        await run(small, job(media_io={"num_frames": 1}), make_video(2))
    finally:
        await small.close()


@pytest.mark.parametrize(
    "kind", ["mp4 h264", "mp4 hevc", "webm vp8", "webm vp9", "mkv h264", "gif", "mov mjpeg"]
)
async def test_mutated_files_end_in_frames_or_in_a_refusal(pool: WorkerPool, kind: str) -> None:
    random_source = random.Random(kind)
    whole = make_video(12, **KINDS[kind])

    async def one(payload: bytes) -> bool:
        try:
            await run(pool, job(media_io={"num_frames": 4}), payload)
        except PerceptError as error:
            assert isinstance(error, BadMediaError), error
            assert "0x" not in error.message and "av_" not in error.message
            return False
        return True

    mutated = [mutate(random_source, whole) for _ in range(MUTATIONS_PER_KIND)]
    read = sum(await asyncio.gather(*(one(payload) for payload in mutated)))
    assert read < MUTATIONS_PER_KIND
    await run(pool, job(), whole)


def mutate(random_source: random.Random, payload: bytes) -> bytes:
    """Changes bytes, cuts, doubles or removes a piece."""
    changed = bytearray(payload)
    # Half of the time where the headers are.
    end = random_source.choice([len(changed), min(len(changed), 700)])
    for _ in range(random_source.choice([1, 3, 20])):
        changed[random_source.randrange(4, end)] = random_source.choice(
            [0, 255, random_source.randrange(256)]
        )
    start = random_source.randrange(4, len(changed))
    length = random_source.randrange(1, 200)
    match random_source.randrange(4):
        case 0:
            del changed[start : start + length]
        case 1:
            changed[start:start] = changed[start : start + length]
        case _:
            pass
    return bytes(changed)
