"""Delivery over real gRPC: the header before the rows, and every way that the other side may end it."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest

from encoder_service.delivery import Delivery, PutRequest, _send, chunk_frames, tensor_chunks
from encoder_service.encoding import Kept, Layout, Timings
from protos.llm.v1 import embedding_service_pb2_grpc
from shared.errors import (
    BadEmbeddingsError,
    BadMediaError,
    DeadlineError,
    InvalidRequestError,
    UnavailableError,
)
from shared.families.base import EncodedItem, Grid, MediaInfo, RawTensor
from shared.rpc.channel import open_channel
from shared.wire import header_to_wire, layouts_of
from tests.unit.encoder_service.receiver import receiving
from tests.unit.encoder_service.waiting import until

KEY = "ab" * 32
INFO = MediaInfo(row_count=700, grids=(Grid(1, 40, 70),), image_size=(400, 700))


def item(width: int = 1024) -> EncodedItem:
    rows = bytes(index % 251 for index in range(4 * width)) * 700
    deep = RawTensor("bfloat16", (700, 8), bytes(700 * 16))
    return EncodedItem(INFO, {"embeds": RawTensor("float32", (700, width), rows), "deep": deep})


class Coming:
    """An encoding whose rows come when they are given, whole or in parts."""

    def __init__(self, promised: EncodedItem, part_count: int = 1) -> None:
        self._layout = Layout(promised.info, tuple(layouts_of(promised.tensors)))
        loop = asyncio.get_running_loop()
        self.given: list[asyncio.Future[EncodedItem]] = [loop.create_future() for _ in range(part_count)]

    @property
    def rows(self) -> asyncio.Future[EncodedItem]:
        return self.given[0]

    async def layout(self) -> Layout:
        return self._layout

    async def parts(self) -> AsyncIterator[EncodedItem]:
        for part in self.given:
            yield await asyncio.shield(part)

    def timings(self) -> Timings:
        return Timings()


async def test_all_bytes_of_all_tensors_arrive() -> None:
    async with receiving() as (receiver, address):
        delivery = Delivery([])
        seconds = await delivery.push(address, KEY, Kept(item()), 30)
        assert seconds > 0
        assert receiver.items[KEY] == [bytes(tensor.data) for tensor in item().tensors.values()]
        header = receiver.headers[0]
        assert (header.info.row_count, header.info.grids[0].width, header.info.image_size.height) == (
            700,
            70,
            400,
        )
        await delivery.close()


def test_frames_made_by_hand_are_what_the_generated_code_writes() -> None:
    messages = [PutRequest(chunk=chunk) for chunk in tensor_chunks(item())]
    frames = list(chunk_frames(item()))
    assert [PutRequest.FromString(frame) for frame in frames] == messages
    assert frames == [message.SerializeToString(deterministic=True) for message in messages]


async def test_the_header_arrives_before_the_rows_are_there() -> None:
    async with receiving() as (receiver, address):
        delivery, coming = Delivery([]), Coming(item())
        push = asyncio.create_task(delivery.push(address, KEY, coming, 30))
        async with asyncio.timeout(5):
            await receiver.header_came.wait()
        assert receiver.items == {} and not push.done()
        coming.rows.set_result(item())
        await push
        assert KEY in receiver.items
        await delivery.close()


def cut(whole: EncodedItem, bounds: list[int]) -> list[EncodedItem]:
    """Parts of an item, from one row to the next of `bounds`."""
    parts = []
    for start, end in itertools.pairwise(bounds):
        tensors = {
            name: RawTensor(
                tensor.data_type,
                (end - start, *tensor.shape[1:]),
                memoryview(tensor.data)[start * len(tensor.data) // 700 : end * len(tensor.data) // 700],
            )
            for name, tensor in whole.tensors.items()
        }
        parts.append(EncodedItem(replace(INFO, row_count=end - start), tensors))
    return parts


async def test_parts_arrive_while_later_ones_are_still_to_come() -> None:
    whole = item()
    parts = cut(whole, [0, 300, 301, 700])
    async with receiving() as (receiver, address):
        delivery, coming = Delivery([]), Coming(whole, 3)
        push = asyncio.create_task(delivery.push(address, KEY, coming, 30))
        row_bytes = [1024 * 4, 16]
        for part, given, rows in zip(parts, coming.given, (300, 301, 700), strict=True):
            given.set_result(part)
            expected = [rows * size for size in row_bytes]
            await until(lambda expected=expected: receiver.received == expected)  # type: ignore[misc]
        await push
        assert receiver.items[KEY] == [bytes(tensor.data) for tensor in whole.tensors.values()]
        await delivery.close()


async def test_an_item_that_fails_on_the_way_breaks_the_push_off() -> None:
    whole = item()
    async with receiving() as (receiver, address):
        delivery, coming = Delivery([]), Coming(whole, 2)
        push = asyncio.create_task(delivery.push(address, KEY, coming, 30))
        coming.given[0].set_result(cut(whole, [0, 300, 700])[0])
        await until(lambda: receiver.received == [300 * 4096, 300 * 16])
        coming.given[1].set_exception(BadMediaError("the second half is broken"))
        with pytest.raises(BadMediaError, match="second half"):
            await push
        await until(lambda: receiver.cancelled == 1)
        assert receiver.items == {}
        await delivery.close()


async def test_a_receiver_that_leaves_between_parts_ends_the_push() -> None:
    async with receiving("leave") as (_, address):
        delivery, coming = Delivery([]), Coming(item(), 2)
        coming.given[0].set_result(cut(item(), [0, 300, 700])[0])
        async with asyncio.timeout(5):
            # It ends although the second part never comes.
            with pytest.raises(UnavailableError, match="leaving"):
                await delivery.push(address, KEY, coming, 30)
        await delivery.close()


async def test_pushes_of_one_item_to_one_address_at_once_are_one() -> None:
    async with receiving() as (first, first_address), receiving() as (second, second_address):
        delivery, coming = Delivery([]), Coming(item())
        pushes = [
            asyncio.create_task(delivery.push(address, KEY, coming, 30))
            for address in [first_address] * 5 + [second_address] * 5
        ]
        await asyncio.sleep(0.05)
        coming.rows.set_result(item())
        await asyncio.gather(*pushes)
        assert (len(first.headers), len(second.headers)) == (1, 1)
        assert first.items == second.items
        await delivery.close()


@pytest.mark.parametrize("attempt", range(5))
async def test_an_answer_that_nothing_is_needed_is_no_error(attempt: int) -> None:
    async with receiving("drop") as (receiver, address):
        delivery = Delivery([])
        await delivery.push(address, KEY, Kept(item()), 30)
        coming = Coming(item())
        async with asyncio.timeout(5):
            # It ends although the rows never come.
            await delivery.push(address, KEY, coming, 30)
        assert len(receiver.headers) == 2
        await delivery.close()


@pytest.mark.parametrize("attempt", range(5))
async def test_a_refusal_that_is_not_the_items_fault_is_not_told_as_one(attempt: int) -> None:
    async with receiving("refuse") as (_, address):
        delivery = Delivery([])
        with pytest.raises(UnavailableError, match=r"refused .* larger than the store"):
            await delivery.push(address, KEY, Coming(item()), 30)
        with pytest.raises(UnavailableError, match=r"refused .* larger than the store"):
            await delivery.push(address, KEY, Kept(item()), 30)
        await delivery.close()


async def test_a_refusal_that_blames_the_item_reaches_the_caller() -> None:
    async with receiving("blame") as (_, address):
        delivery = Delivery([])
        with pytest.raises(BadEmbeddingsError, match="do not fit"):
            await delivery.push(address, KEY, Coming(item()), 30)
        await delivery.close()


async def test_a_receiver_that_leaves_in_the_middle_is_an_error() -> None:
    async with receiving("leave") as (_, address):
        delivery = Delivery([])
        with pytest.raises(UnavailableError, match="leaving"):
            await delivery.push(address, KEY, Kept(item(8192)), 30)
        await delivery.close()


async def test_a_receiver_that_cancels_in_the_middle_is_an_error() -> None:
    async with receiving("cancel") as (_, address):
        delivery = Delivery([])
        with pytest.raises(UnavailableError):
            await delivery.push(address, KEY, Kept(item(8192)), 30)
        await delivery.close()


async def test_the_receiver_is_told_the_deadline() -> None:
    async with receiving() as (receiver, address):
        delivery = Delivery([])
        await delivery.push(address, KEY, Kept(item()), 20)
        assert receiver.remaining_s is not None and 10 < receiver.remaining_s <= 20.1
        await delivery.close()


async def test_a_receiver_whose_own_time_was_up_is_not_asked_again_and_again() -> None:
    async with receiving("late") as (receiver, address):
        delivery = Delivery([])
        async with asyncio.timeout(5):
            with pytest.raises(DeadlineError, match="receiver"):
                await delivery.push(address, KEY, Kept(item()), 30)
        assert len(receiver.headers) == 1
        await delivery.close()


async def test_a_call_that_ended_before_its_header_tells_its_own_status() -> None:
    async with receiving() as (_, address), open_channel(address) as channel:
        call = embedding_service_pb2_grpc.EmbeddingServiceStub(channel).PutEmbeddings(timeout=0)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        layout = layouts_of(item().tensors)
        header = PutRequest(header=header_to_wire(KEY, INFO, layout))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _send(call, header, Kept(item()))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_an_address_where_nobody_listens_is_unavailable_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    delivery = Delivery([])
    started = time.monotonic()
    with pytest.raises(UnavailableError):
        await delivery.push(address, KEY, Kept(item()), 30)
    assert time.monotonic() - started < 5
    await delivery.close()


async def test_a_receiver_that_stalls_holds_us_until_the_deadline() -> None:
    async with receiving("stall") as (receiver, address):
        delivery = Delivery([])
        with pytest.raises(DeadlineError):
            await delivery.push(address, KEY, Kept(item(8192)), 0.5)
        await until(lambda: receiver.cancelled == 1)
        await delivery.close()


async def test_the_deadline_of_one_caller_is_not_anothers() -> None:
    async with receiving() as (receiver, address):
        delivery, coming = Delivery([]), Coming(item())
        hurried = asyncio.create_task(delivery.push(address, KEY, coming, 0.3))
        patient = asyncio.create_task(delivery.push(address, KEY, coming, 30))
        with pytest.raises(DeadlineError):
            await hurried
        coming.rows.set_result(item())
        await patient
        assert KEY in receiver.items
        await delivery.close()


async def test_when_the_last_caller_leaves_the_push_breaks_off() -> None:
    async with receiving() as (receiver, address):
        delivery, coming = Delivery([]), Coming(item())
        pushes = [asyncio.create_task(delivery.push(address, KEY, coming, 30)) for _ in range(2)]
        await receiver.header_came.wait()
        pushes[0].cancel()
        await asyncio.sleep(0.05)
        assert receiver.cancelled == 0
        pushes[1].cancel()
        await until(lambda: receiver.cancelled == 1)
        assert receiver.items == {}
        await delivery.close()


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":50051", "unix:/tmp/socket:1", "dns:///a:1", "a/b:1", "a:123456", "a b:1"],
)
async def test_addresses_that_are_no_host_and_port_are_refused(address: str) -> None:
    with pytest.raises(InvalidRequestError, match="HOST:PORT"):
        await Delivery([]).check(address)


async def test_only_the_named_addresses_are_allowed() -> None:
    delivery = Delivery(["127.0.0.1:50052", "[::1]:50052"])
    await delivery.check("127.0.0.1:50052")
    await delivery.check("[::1]:50052")
    for other in ("127.0.0.1:50053", "127.0.0.2:50052", "elsewhere:50052"):
        with pytest.raises(UnavailableError, match="none of"):
            await delivery.check(other)
    await delivery.close()
    await Delivery([]).check("elsewhere:50052")


async def test_what_a_named_service_resolves_to_is_allowed() -> None:
    delivery = Delivery(["localhost:50052"])
    await delivery.check("127.0.0.1:50052")
    await delivery.close()
