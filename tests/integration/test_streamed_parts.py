"""A video's rows are delivered, and prefilled, while the tower still works on the rest of it.

Real services in this process, with a tower that runs only when it is let.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from encoder_service.service import running as running_encoder
from encoder_service.settings import EncoderSettings
from llm_service.service import running as running_llm
from llm_service.settings import LlmSettings
from protos.encoder.v1 import encoder_service_pb2, encoder_service_pb2_grpc
from protos.llm.v1 import llm_service_pb2
from protos.media.v1 import media_pb2
from shared.errors import PerceptError
from shared.families.base import Features
from shared.families.parts import PART_TOKEN_COUNTS
from shared.families.qwen2_vl import Qwen2VLTower
from shared.rpc.channel import open_channel
from tests.families import all_cases
from tests.integration.llm_caller import Answer, Caller, frames_of, message
from tests.integration.test_encoder_service import encode, header_for, noise, png
from tests.oracle import Oracle, Video
from tests.unit.encoder_service.receiver import receiving
from tests.unit.encoder_service.waiting import until

if TYPE_CHECKING:
    import torch

    from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceAsyncStub as Stub

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

FRAMES, SIDE = 32, 112
PARTS = 4
"""16 steps of 64 patches; a part has 256."""

ROWS = FRAMES // 2 * 16
ROW_BYTES = 64 * 4


class Gate:
    """Lets the tower run, or only as often as it is told.

    Attributes:
        costs: tokens of each item of each run that began.
        poison: number of the run, from now on, that fails.
    """

    def __init__(self) -> None:
        self._real = Qwen2VLTower.encode
        self._closed = False
        self._allowed = threading.Semaphore(0)
        self.costs: list[list[int]] = []
        self.poison = -1

    def encode(self, tower: Qwen2VLTower, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        self.costs.append([features.token_cost for features in batch])
        if self._closed:
            assert self._allowed.acquire(timeout=60)
        if len(self.costs) == self.poison:
            raise RuntimeError("the tower fell")
        return self._real(tower, batch)

    def close(self) -> None:
        self.costs, self.poison, self._closed = [], -1, True

    def let(self, count: int) -> None:
        self._allowed.release(count)

    def open(self) -> None:
        self._closed = False
        self._allowed.release(100)
        self._allowed = threading.Semaphore(0)


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    made = Gate()
    with pytest.MonkeyPatch.context() as patch:
        # A function, as it must bind to the tower.
        def encode(tower: Qwen2VLTower, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
            return made.encode(tower, batch)

        patch.setattr(Qwen2VLTower, "encode", encode)
        patch.setitem(PART_TOKEN_COUNTS, "cpu", 256)
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def address(gate: Gate, tiny_checkpoint: Callable[[str], Path]) -> AsyncIterator[str]:
    settings = EncoderSettings(
        model=str(tiny_checkpoint("qwen2_vl")), listen="127.0.0.1:0", workers=2, drain_grace_s=1, threads=1
    )
    async with running_encoder(settings) as (_, port):
        yield f"127.0.0.1:{port}"


@pytest_asyncio.fixture(loop_scope="module")
async def stub(address: str, gate: Gate) -> AsyncIterator[Stub]:
    gate.close()
    async with open_channel(address) as channel:
        yield encoder_service_pb2_grpc.EncoderServiceStub(channel)
        gate.open()


def video(seed: int) -> Video:
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (FRAMES, 8, 8, 3), dtype=np.uint8)
    shown = [Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.NEAREST) for each in small]
    return Video(np.stack([np.asarray(each) for each in shown]), fps=1.0)


def payload_of(shown: Video) -> bytes:
    frames = [png(Image.fromarray(frame)) for frame in shown.frames]
    return media_pb2.FrameList(frames=frames).SerializeToString()


AS_VIDEO: dict[str, Any] = {"modality": media_pb2.MODALITY_VIDEO, "form": media_pb2.MEDIA_FORM_FRAMES}


async def until_idle(stub: Stub) -> encoder_service_pb2.GetStatusResponse:
    found = []

    async def idle() -> bool:
        found.append(await stub.GetStatus(encoder_service_pb2.GetStatusRequest(), timeout=5))
        return found[-1].pending_item_count == 0

    await until(idle, 30)
    return found[-1]


async def test_rows_of_the_first_parts_are_delivered_while_the_tower_works(stub: Stub, gate: Gate) -> None:
    payload = payload_of(video(1))
    async with receiving() as (receiver, llm):
        call = asyncio.create_task(encode(stub, payload, delivery_address=llm, **AS_VIDEO))
        await asyncio.wait_for(receiver.header_came.wait(), 30)
        assert receiver.headers[0].info.row_count == ROWS
        for part in range(PARTS):
            await until(lambda part=part: len(gate.costs) == part + 1)  # type: ignore[misc]
            assert receiver.items == {}
            gate.let(1)
            await until(lambda part=part: receiver.received == [(part + 1) * 64 * ROW_BYTES])  # type: ignore[misc]
        answer = await call
        assert gate.costs == [[256]] * PARTS
        again = await encode(stub, payload, **AS_VIDEO)
        assert answer.trailer is not None and again.trailer is not None
        assert again.trailer.cache_hit
        (delivered,) = receiver.items.values()
        assert delivered == [bytes(again.data)]


async def test_returned_rows_stream_too(stub: Stub, gate: Gate) -> None:
    payload = payload_of(video(2))
    call = stub.Encode(timeout=60)
    header = header_for(payload, **AS_VIDEO)
    await call.write(encoder_service_pb2.EncodeRequest(header=header))
    await call.read()
    await call.write(encoder_service_pb2.EncodeRequest(chunk=payload))
    await call.done_writing()
    kinds, byte_count = [], 0
    for part in range(PARTS):
        gate.let(1)
        while byte_count < (part + 1) * 64 * ROW_BYTES:
            frame: Any = await call.read()
            kinds.append(frame.WhichOneof("frame"))
            if kinds[-1] == "chunk":
                assert frame.chunk.byte_offset == byte_count
                byte_count += len(frame.chunk.data)
    trailer: Any = await call.read()
    assert kinds == ["info", "header", *["chunk"] * PARTS]
    assert trailer.trailer.encode_seconds > 0


async def test_callers_who_join_late_get_all_parts_of_one_run(stub: Stub, gate: Gate) -> None:
    payload = payload_of(video(3))
    before = await until_idle(stub)
    first = asyncio.create_task(encode(stub, payload, **AS_VIDEO))
    gate.let(2)
    await until(lambda: len(gate.costs) == 3)
    second = asyncio.create_task(encode(stub, payload, **AS_VIDEO))
    await asyncio.sleep(0.1)
    gate.let(2)
    answers = await asyncio.gather(first, second)
    assert answers[0].data == answers[1].data and len(answers[0].data) == ROWS * ROW_BYTES
    assert answers[1].payload_wanted is False
    after = await until_idle(stub)
    assert after.encoded_item_count - before.encoded_item_count == 1
    assert after.tower_run_count - before.tower_run_count == PARTS


async def test_when_the_caller_leaves_queued_parts_are_dropped(stub: Stub, gate: Gate) -> None:
    payload = payload_of(video(4))
    async with receiving() as (receiver, llm):
        call = asyncio.create_task(encode(stub, payload, delivery_address=llm, **AS_VIDEO))
        gate.let(1)
        await until(lambda: receiver.received == [64 * ROW_BYTES])
        call.cancel()
        await until(lambda: receiver.cancelled == 1)
        gate.open()
        await until_idle(stub)
        await encode(stub, png(noise(70)))
        assert len(gate.costs) == 3, "the part that ran, and the picture"
        assert receiver.items == {}


async def test_a_part_that_fails_fails_the_item_and_breaks_its_push_off(stub: Stub, gate: Gate) -> None:
    payload = payload_of(video(5))
    gate.poison = 2
    async with receiving() as (receiver, llm):
        call = asyncio.create_task(encode(stub, payload, delivery_address=llm, **AS_VIDEO))
        gate.let(2)
        with pytest.raises(PerceptError):
            await call
        await until(lambda: receiver.cancelled == 1)
        assert receiver.items == {}
        assert len(gate.costs) == 2
        # Nothing of it was kept: the next one starts anew.
        gate.open()
        answer = await encode(stub, payload, delivery_address=llm, **AS_VIDEO)
        assert answer.payload_wanted
        assert len(receiver.items) == 1


async def test_pictures_pass_a_long_video(stub: Stub, gate: Gate) -> None:
    long = asyncio.create_task(encode(stub, payload_of(video(6)), **AS_VIDEO))
    await until(lambda: len(gate.costs) == 1)
    pictures = [asyncio.create_task(encode(stub, png(noise(80 + index, (SIDE, SIDE))))) for index in range(2)]

    # Time to be decoded; they come too late for the second part, which waits in the queue.
    await asyncio.sleep(1)
    gate.let(3)
    await asyncio.gather(*pictures)
    assert gate.costs[:3] == [[256], [256], [64, 64]]
    gate.open()
    await long


async def test_prefill_begins_before_the_last_part_is_encoded(
    stub: Stub, gate: Gate, tiny_checkpoint: Callable[[str], Path], oracle: Oracle
) -> None:
    folder, shown = tiny_checkpoint("qwen2_vl"), video(7)
    payload = payload_of(shown)
    settings = LlmSettings(
        model=str(folder),
        listen="127.0.0.1:0",
        device="cpu",
        threads=1,
        max_model_len=512,
        max_num_batched_tokens=32,
        kv_cache_gib=0.02,
        drain_grace_s=0,
    )
    item = header_for(payload, **AS_VIDEO).item
    request = llm_service_pb2.GenerateRequest(
        conversation=llm_service_pb2.Conversation(messages=[message("user", 0, "what happens?")]),
        media=[item],
        sampling=llm_service_pb2.SamplingParameters(temperature=0.0),
        stopping=llm_service_pb2.StoppingParameters(max_token_count=8, min_token_count=8),
    )
    async with (
        running_llm(settings, asyncio.Event()) as service,
        open_channel(f"127.0.0.1:{service.port}") as channel,
    ):
        caller = Caller(channel)
        generated = caller.open(request)
        assert (await generated.read()).media_needed.keys == [item.key]
        llm = f"127.0.0.1:{service.port}"
        call = asyncio.create_task(encode(stub, payload, delivery_address=llm, **AS_VIDEO))
        steps = await steps_at_rest(caller)
        for part in range(PARTS - 1):
            await until(lambda part=part: len(gate.costs) == part + 1)  # type: ignore[misc]
            gate.let(1)
            # 64 rows are two steps of 32 tokens.
            grown = steps + 2 * (part + 1)
            await until(lambda grown=grown: reached(caller, grown))  # type: ignore[misc]
        await until(lambda: len(gate.costs) == PARTS)
        assert (await caller.status()).generated_token_count == 0
        gate.let(1)
        await call
        answer = Answer()
        async for frame in frames_of(generated):
            answer.take(frame)
    content = [{"type": "video"}, {"type": "text", "text": "what happens?"}]
    expected = oracle.ask(
        all_cases()["qwen2_vl"], folder, [{"role": "user", "content": content}], [shown], new_tokens=8
    )
    assert answer.token_ids[0] == expected.new_ids


async def reached(caller: Caller, step_count: int) -> bool:
    return (await caller.status()).step_count >= step_count


async def steps_at_rest(caller: Caller) -> int:
    """Steps once the text before the video is prefilled."""
    await until(lambda: reached(caller, 1))
    await asyncio.sleep(0.2)
    return (await caller.status()).step_count
