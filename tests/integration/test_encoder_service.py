"""The encoder service over real gRPC, with real workers and a tiny checkpoint."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image

from encoder_service.service import running
from encoder_service.settings import EncoderSettings
from protos.encoder.v1 import encoder_service_pb2, encoder_service_pb2_grpc
from protos.media.v1 import media_pb2
from shared.content_key import content_key
from shared.errors import (
    BadEmbeddingsError,
    BadMediaError,
    InvalidRequestError,
    MediaTooLargeError,
    OverloadedError,
    PerceptError,
    UnavailableError,
    UnknownModelError,
    UnsupportedMediaError,
)
from shared.families.base import RawTensor
from shared.rpc.channel import open_channel
from shared.rpc.server import wait_until_serving
from shared.rpc.status import from_rpc_error
from shared.torch_tensors import from_raw
from tests.checkpoints import MODEL_TYPES
from tests.reference import ReferenceModel
from tests.unit.encoder_service.receiver import receiving
from tests.unit.encoder_service.waiting import until

if TYPE_CHECKING:
    from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceAsyncStub as Stub

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

HIDDEN_SIZE = 64


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def address(tiny_checkpoint: Callable[[str], Path]) -> AsyncIterator[str]:
    settings = EncoderSettings(
        model=str(tiny_checkpoint("qwen2_vl")),
        served_model_name=("tiny", "second-name"),
        listen="127.0.0.1:0",
        workers=2,
        max_pending_items=64,
        max_payload_mib=2,
        max_image_pixels=4_000_000,
        drain_grace_s=1,
    )
    async with running(settings) as (_, port):
        yield f"127.0.0.1:{port}"


@pytest_asyncio.fixture(loop_scope="module")
async def stub(address: str) -> AsyncIterator[Stub]:
    async with open_channel(address) as channel:
        yield encoder_service_pb2_grpc.EncoderServiceStub(channel)


def noise(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    samples = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(samples)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def header_for(
    payload: bytes, form: media_pb2.MediaForm.ValueType = media_pb2.MEDIA_FORM_FILE, **changes: Any
) -> encoder_service_pb2.EncodeHeader:
    settings = changes.pop("settings", "")
    modality = changes.pop("modality", media_pb2.MODALITY_IMAGE)
    key = changes.pop("key", content_key(modality, form, settings, payload))
    item = media_pb2.MediaItem(key=key, modality=modality, form=form, settings=settings)
    return encoder_service_pb2.EncodeHeader(item=item, **{"byte_count": len(payload), **changes})


class Answer:
    """The frames of one call."""

    def __init__(self) -> None:
        self.payload_wanted: bool | None = None
        self.info: media_pb2.MediaInfo | None = None
        self.header: media_pb2.EmbeddingsHeader | None = None
        self.data = bytearray()
        self.trailer: encoder_service_pb2.EncodeTrailer | None = None
        self.order: list[str] = []

    def add(self, frame: encoder_service_pb2.EncodeResponse) -> None:
        kind = frame.WhichOneof("frame")
        assert kind is not None
        self.order.append(kind)
        if kind == "accepted":
            self.payload_wanted = frame.accepted.payload_wanted
        elif kind == "chunk":
            assert frame.chunk.byte_offset == len(self.data)
            self.data += frame.chunk.data
        else:
            setattr(self, kind, getattr(frame, kind))

    def rows(self) -> torch.Tensor:
        assert self.header is not None
        (tensor,) = self.header.tensors
        return from_raw(RawTensor("float32", tuple(tensor.shape), bytes(self.data)))


async def encode(
    stub: Stub, payload: bytes, *, sent: bytes | None = None, timeout_s: float = 30, **changes: Any
) -> Answer:
    """Makes one call as the conductor does.

    Raises:
        PerceptError: the call's status.
    """
    sent = payload if sent is None else sent
    call = stub.Encode(timeout=timeout_s)
    answer = Answer()
    try:
        await call.write(encoder_service_pb2.EncodeRequest(header=header_for(payload, **changes)))
        frame: Any = await call.read()
        if frame is not grpc.aio.EOF:
            answer.add(frame)
            if answer.payload_wanted:
                for start in range(0, len(sent), 256 * 1024):
                    chunk = sent[start : start + 256 * 1024]
                    await call.write(encoder_service_pb2.EncodeRequest(chunk=chunk))
            await call.done_writing()
        while (frame := await call.read()) is not grpc.aio.EOF:
            answer.add(frame)
        if await call.code() is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                await call.code(),
                await call.initial_metadata(),
                await call.trailing_metadata(),
                await call.details(),
            )
    except grpc.aio.AioRpcError as fault:
        raise from_rpc_error(fault, "encoder") from fault
    return answer


async def status(stub: Stub) -> encoder_service_pb2.GetStatusResponse:
    return await stub.GetStatus(encoder_service_pb2.GetStatusRequest(), timeout=5)


async def until_idle(stub: Stub) -> None:
    await until_pending(stub, 0)


async def until_pending(stub: Stub, count: int) -> None:
    async def reached() -> bool:
        return (await status(stub)).pending_item_count == count

    await until(reached, 30)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
async def test_rows_equal_those_of_transformers(
    model_type: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    folder = tiny_checkpoint(model_type)
    picture = noise(1, (140, 90))
    settings = EncoderSettings(model=str(folder), listen="127.0.0.1:0", workers=1, drain_grace_s=1)
    async with running(settings) as (_, port), open_channel(f"127.0.0.1:{port}") as channel:
        answer = await encode(encoder_service_pb2_grpc.EncoderServiceStub(channel), png(picture))
    reference = ReferenceModel(folder, "float64")
    (expected,) = reference.image_features(dict(reference.processor(images=[picture], return_tensors="pt")))
    assert answer.order == ["accepted", "info", "header", "chunk", "trailer"]
    # To double precision; ours and torch's own float32 are both up to 1.3e-5 away from it.
    assert torch.allclose(answer.rows().double(), expected, atol=5e-5)
    assert answer.info is not None and answer.trailer is not None
    assert answer.info.row_count == len(expected)
    assert (answer.info.image_size.height, answer.info.image_size.width) == (90, 140)
    assert answer.trailer.decode_seconds > 0 and answer.trailer.encode_seconds > 0


async def test_a_batch_gives_each_item_its_own_rows(stub: Stub) -> None:
    payloads = [png(noise(seed, (64 + 28 * (seed % 4), 90))) for seed in range(100, 130)]
    alone = [(await encode(stub, payload, settings='{"max_pixels":28224}')).rows() for payload in payloads]
    before = await status(stub)
    together = await asyncio.gather(*(encode(stub, payload) for payload in payloads))
    after = await status(stub)
    for one, answer in zip(alone, together, strict=True):
        assert torch.allclose(one, answer.rows(), atol=1e-5)
    assert after.encoded_item_count - before.encoded_item_count == 30
    assert after.tower_run_count - before.tower_run_count < 30


async def test_the_same_item_again_needs_no_payload_and_no_tower(stub: Stub) -> None:
    payload = png(noise(2))
    first = await encode(stub, payload)
    before = await status(stub)
    second = await encode(stub, payload)
    after = await status(stub)
    assert (first.payload_wanted, second.payload_wanted) == (True, False)
    assert second.trailer is not None and second.trailer.cache_hit
    assert second.data == first.data and second.info == first.info
    assert after.encoded_item_count == before.encoded_item_count
    assert after.cache_hit_count == before.cache_hit_count + 1


async def test_the_same_item_many_times_at_once_is_encoded_once(stub: Stub) -> None:
    payload = png(noise(3))
    before = await status(stub)
    answers = await asyncio.gather(*(encode(stub, payload) for _ in range(20)))
    after = await status(stub)
    assert len({bytes(answer.data) for answer in answers}) == 1
    assert after.encoded_item_count - before.encoded_item_count == 1


async def test_an_uploader_who_dies_leaves_the_other_waiting_callers_whole(stub: Stub) -> None:
    payload = png(noise(4))
    dying = stub.Encode(timeout=30)
    await dying.write(encoder_service_pb2.EncodeRequest(header=header_for(payload)))
    await dying.read()
    await dying.write(encoder_service_pb2.EncodeRequest(chunk=payload[:100]))
    # Told that its payload is wanted too, because the first one's is not whole yet.
    other = await encode(stub, payload)
    assert other.payload_wanted and other.trailer is not None
    dying.cancel()
    await until_idle(stub)


async def test_delivered_rows_are_the_returned_ones(stub: Stub) -> None:
    payload = png(noise(5))
    async with receiving() as (receiver, llm):
        answer = await encode(stub, payload, delivery_address=llm)
        assert answer.order == ["accepted", "info", "trailer"]
        again = await encode(stub, payload, delivery_address=llm)
        assert again.payload_wanted is False
        returned = await encode(stub, payload)
        (delivered,) = receiver.items[header_for(payload).item.key]
        assert delivered == bytes(returned.data)
        assert len(receiver.headers) == 2
        assert receiver.headers[0] == returned.header


async def test_an_item_for_two_llm_services_is_encoded_once_and_pushed_to_each(stub: Stub) -> None:
    payload = png(noise(6))
    before = await status(stub)
    async with receiving() as (first, first_llm), receiving() as (second, second_llm):
        await asyncio.gather(
            *(encode(stub, payload, delivery_address=llm) for llm in [first_llm, second_llm] * 4)
        )
        assert first.items == second.items
        assert len(first.items) == 1
    assert (await status(stub)).encoded_item_count - before.encoded_item_count == 1


async def test_a_delivery_that_fails_is_the_callers_status(stub: Stub) -> None:
    async with receiving("refuse") as (_, llm):
        with pytest.raises(UnavailableError, match="larger than the store"):
            await encode(stub, png(noise(7)), delivery_address=llm)
    with pytest.raises(UnavailableError):
        await encode(stub, png(noise(7)), delivery_address=llm)
    with pytest.raises(InvalidRequestError, match="HOST:PORT"):
        await encode(stub, png(noise(7)), delivery_address="unix:/tmp/x")


async def test_a_caller_who_leaves_frees_everything_and_breaks_the_push_off(stub: Stub) -> None:
    payload = png(noise(8))
    async with receiving("stall") as (receiver, llm):
        task = asyncio.create_task(encode(stub, payload, delivery_address=llm))
        await receiver.header_came.wait()
        assert (await status(stub)).pending_item_count == 1
        task.cancel()
        await until_idle(stub)
        await until(lambda: receiver.cancelled == 1, 2)


async def test_a_caller_who_leaves_during_the_upload_frees_everything(stub: Stub) -> None:
    payload = png(noise(9))
    for sent in (b"", payload[:100]):
        call = stub.Encode(timeout=30)
        await call.write(encoder_service_pb2.EncodeRequest(header=header_for(payload)))
        await call.read()
        if sent:
            await call.write(encoder_service_pb2.EncodeRequest(chunk=sent))
        call.cancel()
        await until_idle(stub)


REFUSALS: list[tuple[bytes, dict[str, Any], type[PerceptError]]] = [
    (png(noise(10)), {"model": "elsewhere"}, UnknownModelError),
    (png(noise(10)), {"key": "0" * 63}, InvalidRequestError),
    (png(noise(10)), {"key": "0" * 64}, InvalidRequestError),
    (png(noise(10)), {"sent": b"x" * 200}, InvalidRequestError),
    (png(noise(10)), {"sent": png(noise(10))[:-1]}, InvalidRequestError),
    (png(noise(10)), {"sent": png(noise(10)) + b"x"}, InvalidRequestError),
    (png(noise(10)), {"sent": png(noise(10)) + bytes(700_000)}, InvalidRequestError),
    (png(noise(10)), {"byte_count": 3 * 1024**2}, MediaTooLargeError),
    (png(noise(10)), {"byte_count": 0}, InvalidRequestError),
    (png(noise(10)), {"modality": media_pb2.MODALITY_AUDIO}, UnsupportedMediaError),
    (png(noise(10)), {"settings": "[]"}, InvalidRequestError),
    (png(noise(10)), {"settings": '{"no_such_setting":1}'}, InvalidRequestError),
    (b"<html></html>", {}, BadMediaError),
    (b"<svg/>", {}, UnsupportedMediaError),
    (png(noise(10))[:-200], {}, BadMediaError),
    (png(Image.new("L", (2001, 2000))), {}, MediaTooLargeError),
    (png(Image.new("RGB", (1, 5000))), {}, BadMediaError),
    (b"\xff" * 50, {"form": media_pb2.MEDIA_FORM_EMBEDDINGS}, BadEmbeddingsError),
]


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize(("payload", "changes", "error"), REFUSALS)
async def test_refusals_are_typed_and_the_next_item_succeeds(
    stub: Stub, payload: bytes, changes: dict[str, Any], error: type[PerceptError], attempt: int
) -> None:
    with pytest.raises(error) as caught:
        await encode(stub, payload, **changes)
    assert type(caught.value) is error
    assert "0x" not in caught.value.message and "Traceback" not in caught.value.message
    assert (await encode(stub, png(noise(1, (140, 90))))).trailer is not None


async def test_precomputed_embeddings_equal_the_picture_they_came_from(stub: Stub) -> None:
    answer = await encode(stub, png(noise(11)))
    assert answer.info is not None
    (grid,) = answer.info.grids
    file = io.BytesIO()
    torch.save(answer.rows(), file)
    fields = {
        "image_embeds": file.getvalue(),
        "image_grid_thw": f"[{grid.time},{grid.height},{grid.width}]".encode(),
    }
    precomputed = await encode(stub, precomputed_payload(fields), form=media_pb2.MEDIA_FORM_EMBEDDINGS)
    assert precomputed.data == answer.data
    assert precomputed.info is not None and precomputed.info.grids == answer.info.grids


def precomputed_payload(fields: dict[str, bytes]) -> bytes:
    message = media_pb2.PrecomputedEmbeddings(
        fields=[media_pb2.PrecomputedField(name=name, data=data) for name, data in sorted(fields.items())]
    )
    return message.SerializeToString()


def saved(tensor: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.save(tensor, file)
    return file.getvalue()


GOOD = torch.randn(4, HIDDEN_SIZE)
LETHAL: dict[str, dict[str, bytes]] = {
    "negative grid": {"image_embeds": saved(GOOD), "image_grid_thw": b"[1,-4,-4]"},
    "zero grid": {"image_embeds": saved(GOOD), "image_grid_thw": b"[0,0,0]"},
    "huge grid": {"image_embeds": saved(GOOD), "image_grid_thw": b"[1,40000,40000]"},
    "too few rows": {"image_embeds": saved(GOOD[:3]), "image_grid_thw": b"[1,4,4]"},
    "too many rows": {"image_embeds": saved(torch.randn(5, HIDDEN_SIZE)), "image_grid_thw": b"[1,4,4]"},
    "three dimensions": {"image_embeds": saved(GOOD[None]), "image_grid_thw": b"[1,4,4]"},
    "one dimension": {"image_embeds": saved(GOOD[0]), "image_grid_thw": b"[1,4,4]"},
    "wrong width": {"image_embeds": saved(GOOD[:, :32].contiguous()), "image_grid_thw": b"[1,4,4]"},
    "unknown field": {"image_embeds": saved(GOOD), "image_grid_thw": b"[1,4,4]", "zz": b"[1]"},
    "no grid": {"image_embeds": saved(GOOD)},
    "no rows": {"image_grid_thw": b"[1,4,4]"},
    "integers": {"image_embeds": saved(torch.ones(4, HIDDEN_SIZE).long()), "image_grid_thw": b"[1,4,4]"},
    "not a number": {"image_embeds": saved(GOOD * float("nan")), "image_grid_thw": b"[1,4,4]"},
    "infinite": {"image_embeds": saved(GOOD.half() * float("inf")), "image_grid_thw": b"[1,4,4]"},
    "bfloat16 not a number": {
        "image_embeds": saved((GOOD * float("nan")).bfloat16()),
        "image_grid_thw": b"[1,4,4]",
    },
    "floating grid": {"image_embeds": saved(GOOD), "image_grid_thw": saved(torch.tensor([1.0, 4.0, 4.0]))},
    "sparse": {"image_embeds": saved(GOOD.to_sparse()), "image_grid_thw": b"[1,4,4]"},
}


@pytest.mark.parametrize("name", LETHAL)
async def test_embeddings_that_do_not_fit_are_refused(stub: Stub, name: str) -> None:
    payload = precomputed_payload(LETHAL[name])
    with pytest.raises(BadEmbeddingsError):
        await encode(stub, payload, form=media_pb2.MEDIA_FORM_EMBEDDINGS)
    good = precomputed_payload({"image_embeds": saved(GOOD), "image_grid_thw": b"[1,4,4]"})
    answer = await encode(stub, good, form=media_pb2.MEDIA_FORM_EMBEDDINGS)
    assert torch.equal(answer.rows(), GOOD)


async def test_a_full_queue_refuses_with_a_delay_and_recovers(stub: Stub) -> None:
    async with receiving("stall") as (_, llm):
        stalled = [
            asyncio.create_task(encode(stub, png(noise(1000 + n)), delivery_address=llm)) for n in range(64)
        ]
        await until_pending(stub, 64)
        with pytest.raises(OverloadedError) as caught:
            await encode(stub, png(noise(12)))
        assert 0 < caught.value.retry_after <= 30
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)
    await until_idle(stub)
    await encode(stub, png(noise(12)))


async def test_get_model_and_status(stub: Stub) -> None:
    model = await stub.GetModel(encoder_service_pb2.GetModelRequest(), timeout=5)
    assert (model.model, model.family, model.hidden_size) == ("tiny", "qwen2_vl", HIDDEN_SIZE)
    assert list(model.modalities) == [media_pb2.MODALITY_IMAGE, media_pb2.MODALITY_VIDEO]
    assert model.max_payload_byte_count == 2 * 1024**2
    now = await status(stub)
    assert now.max_pending_item_count == 64 and now.pending_item_count == 0
    assert 0 < now.cache_byte_count <= now.max_cache_byte_count
    assert now.resident_byte_count > 50_000_000
    assert now.lost_worker_count == 0


async def test_health_says_serving(address: str) -> None:
    await wait_until_serving(address, 5, "protos.encoder.v1.EncoderService")
