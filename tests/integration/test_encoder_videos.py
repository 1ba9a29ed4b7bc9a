"""Videos through the running encoder service: rows, layouts, and refusals that cost nobody else anything."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
import pytest_asyncio
import torch

from encoder_service.media.video_sampling import spread
from encoder_service.service import running
from encoder_service.settings import EncoderSettings
from protos.encoder.v1 import encoder_service_pb2, encoder_service_pb2_grpc
from protos.media.v1 import media_pb2
from shared.errors import (
    BadMediaError,
    InvalidRequestError,
    MediaTooLargeError,
    PerceptError,
    UnsupportedMediaError,
)
from shared.rpc.channel import open_channel
from tests.integration.test_encoder_service import Answer, encode, noise, png, status
from tests.unit.encoder_service.test_video import frame_list, jpeg, many_streams
from tests.unit.encoder_service.videos import KINDS, make_sound, make_video

if TYPE_CHECKING:
    from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceAsyncStub as Stub

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

SIZE = (112, 84)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stub(tiny_checkpoint: Callable[[str], Path]) -> AsyncIterator[Stub]:
    settings = EncoderSettings(
        model=str(tiny_checkpoint("qwen2_vl")),
        listen="127.0.0.1:0",
        workers=1,
        max_payload_mib=8,
        video_decode_timeout_s=20,
        max_video_seconds=100,
        max_video_frames=64,
        max_video_pixels=2_000_000,
        drain_grace_s=1,
    )
    async with running(settings) as (_, port), open_channel(f"127.0.0.1:{port}") as channel:
        yield encoder_service_pb2_grpc.EncoderServiceStub(channel)


async def encode_video(
    stub: Stub, payload: bytes, form: Any = media_pb2.MEDIA_FORM_FILE, **changes: Any
) -> Answer:
    return await encode(stub, payload, form=form, modality=media_pb2.MODALITY_VIDEO, **changes)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_file_becomes_rows_like_its_frames(stub: Stub, kind: str) -> None:
    payload = make_video(20, size=SIZE, **KINDS[kind])
    answer = await encode_video(stub, payload, settings='{"media_io":{"num_frames":6}}')
    with av.open(io.BytesIO(payload)) as whole:
        frames = [frame.to_ndarray(format="rgb24") for frame in whole.decode(video=0)]
    pngs = [jpeg(frames[place], "PNG") for place in spread(20, 6)]
    listed = await encode_video(
        stub,
        frame_list(pngs, frames_per_second=10.0, indices=spread(20, 6), frame_count=20),
        media_pb2.MEDIA_FORM_FRAMES,
    )
    assert answer.info is not None and listed.info is not None
    assert answer.info == listed.info
    assert answer.info.row_count == 3 * 3 * 4
    assert torch.equal(answer.rows(), listed.rows())


async def test_a_decode_is_timed_and_the_same_video_again_is_kept(stub: Stub) -> None:
    payload = make_video(10, size=SIZE)
    first = await encode_video(stub, payload)
    assert first.trailer is not None and first.trailer.decode_seconds > 0
    again = await encode_video(stub, payload)
    assert again.trailer is not None and again.trailer.cache_hit
    other = await encode_video(stub, payload, settings='{"media_io":{"num_frames":2}}')
    assert other.trailer is not None and not other.trailer.cache_hit
    assert len(other.rows()) < len(first.rows())


HOSTILE: dict[str, tuple[Callable[[], bytes], type[PerceptError], str]] = {
    "text": (lambda: b"a text named film.mp4", BadMediaError, "not a video"),
    "a picture": (lambda: png(noise(1)), UnsupportedMediaError, "PNG picture"),
    "a playlist": (lambda: b"#EXTM3U\nfile:///etc/passwd", UnsupportedMediaError, "playlist"),
    "sound alone": (make_sound, BadMediaError, "no video stream"),
    "a cut file": (lambda: make_video(20)[:-300], BadMediaError, "truncated"),
    "another codec": (
        lambda: make_video(2, container="matroska", codec="ffv1"),
        UnsupportedMediaError,
        "ffv1",
    ),
    "a hundred thousand streams": (
        lambda: many_streams(100_000),
        MediaTooLargeError,
        "too many streams",
    ),
    "a huge frame": (
        lambda: make_video(1, size=(4096, 4096), options={"preset": "ultrafast"}),
        MediaTooLargeError,
        "4096 x 4096",
    ),
    "many large frames": (
        lambda: make_video(8, size=(1280, 720), options={"preset": "ultrafast"}),
        MediaTooLargeError,
        "8 frames of 1280 x 720",
    ),
    "a long one": (
        lambda: make_video(3, stamps=[0, 10, 9_000], container="matroska"),
        MediaTooLargeError,
        "lasts",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_files_are_refused_by_name_and_the_next_succeeds(stub: Stub, name: str) -> None:
    make, kind, text = HOSTILE[name]
    with pytest.raises(kind, match=text) as caught:
        await encode_video(stub, make())
    assert type(caught.value) is kind
    good, picture = await asyncio.gather(
        encode_video(stub, make_video(4, size=SIZE)), encode(stub, png(noise(3)))
    )
    assert good.trailer is not None and picture.trailer is not None


async def test_settings_are_refused_by_name(stub: Stub) -> None:
    for settings, param in (
        ('{"media_io":{"num_frames":65}}', "item.settings.media_io.num_frames"),
        ('{"no_such_setting":1}', "item.settings"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            await encode_video(stub, make_video(2, size=SIZE), settings=settings)
        assert caught.value.param is not None and caught.value.param.startswith(param)


async def test_no_worker_was_lost(stub: Stub) -> None:
    assert (await status(stub)).lost_worker_count == 0
    model = await stub.GetModel(encoder_service_pb2.GetModelRequest(), timeout=5)
    assert media_pb2.MODALITY_VIDEO in model.modalities
