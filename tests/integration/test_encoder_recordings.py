"""Recordings through the running encoder service: rows, and refusals that cost nobody else anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from encoder_service.service import running
from encoder_service.settings import EncoderSettings
from protos.encoder.v1 import encoder_service_pb2, encoder_service_pb2_grpc
from protos.media.v1 import media_pb2
from shared.errors import (
    BadEmbeddingsError,
    BadMediaError,
    InvalidRequestError,
    MediaTooLargeError,
    PerceptError,
    UnsupportedMediaError,
)
from shared.rpc.channel import open_channel
from tests.asking import sound, wave_file
from tests.integration.test_encoder_service import Answer, encode, noise, png, status
from tests.unit.encoder_service.sounds import LOSSLESS, kinds, made, muxed, tone, wave_header, written
from tests.unit.encoder_service.test_sound import REFUSED
from tests.unit.encoder_service.videos import make_video

if TYPE_CHECKING:
    from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceAsyncStub as Stub

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

SECOND = 25
"""Rows of a second: a hundred frames, two for each of the tower's rows, and two of these for each of ours."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stub(tiny_checkpoint: Callable[[str], Path]) -> AsyncIterator[Stub]:
    settings = EncoderSettings(
        model=str(tiny_checkpoint("qwen2_audio")),
        listen="127.0.0.1:0",
        workers=1,
        max_payload_mib=8,
        audio_decode_timeout_s=20,
        max_audio_seconds=30,
        max_audio_samples=5_000_000,
        drain_grace_s=1,
    )
    async with running(settings) as (_, port), open_channel(f"127.0.0.1:{port}") as channel:
        yield encoder_service_pb2_grpc.EncoderServiceStub(channel)


async def encode_sound(
    stub: Stub, payload: bytes, form: Any = media_pb2.MEDIA_FORM_FILE, **changes: Any
) -> Answer:
    return await encode(stub, payload, form=form, modality=media_pb2.MODALITY_AUDIO, **changes)


async def test_every_kind_of_file_becomes_rows(stub: Stub) -> None:
    rate = 48_000
    samples = tone(1.0, rate, 2)
    expected = (await encode_sound(stub, written(samples, rate, "wav float"))).rows()
    assert expected.shape == (SECOND, 64)
    for kind in kinds():
        answer = await encode_sound(stub, made(kind, samples, rate))
        assert answer.info is not None and answer.trailer is not None
        assert answer.info.row_count == len(answer.rows()) >= SECOND
        if kind in LOSSLESS:
            assert answer.info.row_count == SECOND, kind
            torch.testing.assert_close(answer.rows(), expected, atol=0.05, rtol=0.05)


async def test_a_batch_of_eight_gives_each_its_own_rows(stub: Stub) -> None:
    payloads = [wave_file(sound(seed, 0.4 + 0.3 * seed), 16_000) for seed in range(8)]
    alone = [(await encode_sound(stub, payload)).rows() for payload in payloads]
    # Other settings give other keys: nothing comes from the cache.
    asked = (encode_sound(stub, payload, settings='{"truncation":true}') for payload in payloads)
    for one, answer in zip(alone, await asyncio.gather(*asked), strict=True):
        torch.testing.assert_close(answer.rows(), one, atol=1e-5, rtol=1e-5)


async def test_the_same_recording_again_is_kept(stub: Stub) -> None:
    payload = wave_file(sound(50, 1.0), 16_000)
    first = await encode_sound(stub, payload)
    again = await encode_sound(stub, payload)
    assert first.trailer is not None and first.trailer.decode_seconds > 0
    assert again.trailer is not None and again.trailer.cache_hit


async def test_silence_is_heard_too(stub: Stub) -> None:
    rows = (await encode_sound(stub, written(np.zeros((16_000, 1))))).rows()
    assert rows.isfinite().all() and len(rows) == SECOND


async def test_what_is_too_long_is_refused_or_cut_where_that_is_asked_for(stub: Stub) -> None:
    payload = wave_file(sound(60, 5.0), 16_000)
    with pytest.raises(MediaTooLargeError, match=r"lasts 5.0 s; this model hears 4 s"):
        await encode_sound(stub, payload)
    cut = await encode_sound(stub, payload, settings='{"truncation":true}')
    whole = await encode_sound(stub, wave_file(sound(60, 5.0)[:64_000], 16_000))
    assert torch.equal(cut.rows(), whole.rows())


async def test_a_video_is_taken_for_its_sound(stub: Stub) -> None:
    answer = await encode_sound(stub, muxed(tone(1.0, 44_100, 2), 44_100, "mov pcm", video=True))
    assert len(answer.rows()) == SECOND


HOSTILE: dict[str, tuple[Callable[[], bytes], type[PerceptError], str]] = {
    **{name: (make, kind, text) for name, (make, kind, text) in REFUSED.items() if make()},
    "one sample": (lambda: written(np.ones((1, 1)) / 4), BadMediaError, "too short"),
    "a hundred samples": (lambda: written(tone(0.00625)), BadMediaError, "too short"),
    "hours in a small file": (
        lambda: written(np.zeros((2_000_000, 1)), 8_000, "flac"),
        MediaTooLargeError,
        "longer than 30 s",
    ),
    "many samples": (
        lambda: written(np.zeros((1_000_000, 6)), 192_000, "flac"),
        MediaTooLargeError,
        "5000000 samples",
    ),
    "a low rate": (lambda: wave_header(bytes(200_000), rate=1_000), MediaTooLargeError, "longer than 30 s"),
    "a cut file": (lambda: written(tone(1.0))[:-2000], BadMediaError, "truncated"),
    "no numbers": (
        lambda: written(np.full((16_000, 1), np.nan), kind="wav float"),
        BadMediaError,
        "no numbers",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_files_are_refused_by_name_and_the_next_succeeds(stub: Stub, name: str) -> None:
    make, kind, text = HOSTILE[name]
    with pytest.raises(kind, match=text):
        await encode_sound(stub, make())
    assert (await encode_sound(stub, wave_file(sound(len(name), 0.5), 16_000))).trailer is not None


async def test_settings_are_refused_by_name(stub: Stub) -> None:
    for settings, param in (
        ('{"truncation":1}', "item.settings.truncation"),
        ('{"media_io":{"num_frames":5}}', "item.settings.media_io"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            await encode_sound(stub, wave_file(sound(70, 0.5), 16_000), settings=settings)
        assert caught.value.param == param


async def test_other_modalities_are_refused(stub: Stub) -> None:
    with pytest.raises(UnsupportedMediaError):
        await encode(stub, png(noise(1)))
    with pytest.raises(UnsupportedMediaError):
        await encode(stub, make_video(2), modality=media_pb2.MODALITY_VIDEO)


async def test_embeddings_are_checked(stub: Stub) -> None:
    field = media_pb2.PrecomputedField(name="audio_embeds", data=b"nonsense")
    payload = media_pb2.PrecomputedEmbeddings(fields=[field]).SerializeToString()
    with pytest.raises(BadEmbeddingsError):
        await encode_sound(stub, payload, media_pb2.MEDIA_FORM_EMBEDDINGS)


async def test_no_worker_was_lost(stub: Stub) -> None:
    assert (await status(stub)).lost_worker_count == 0
    model = await stub.GetModel(encoder_service_pb2.GetModelRequest(), timeout=5)
    assert list(model.modalities) == [media_pb2.MODALITY_AUDIO]
