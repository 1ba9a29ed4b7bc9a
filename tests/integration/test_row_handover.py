"""Rows from an encoder's delivery to an LLM service's store: in shared memory where both see one folder."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

import encoder_service.row_stage as row_stage
from encoder_service.delivery import Delivery
from encoder_service.encoding import Kept
from encoder_service.row_stage import RowStage
from llm_service.embedding_push import Push
from llm_service.embedding_servicer import EmbeddingServicer, Frame, embedding_service
from llm_service.embedding_store import EmbeddingStore
from llm_service.put_frames import RowChunk
from llm_service.shared_rows import SharedFile
from protos.llm.v1 import embedding_service_pb2 as pb
from protos.llm.v1 import embedding_service_pb2_grpc as pb_grpc
from shared.embedding_arena import EmbeddingArena
from shared.errors import InvalidRequestError, PerceptError, UnavailableError
from shared.families.base import EncodedItem, MediaInfo, RawTensor
from shared.row_handover import FILE_METADATA, new_file_name
from shared.rpc.channel import open_channel
from shared.rpc.server import build_server
from shared.rpc.status import from_rpc_error
from shared.wire import header_to_wire, layouts_of

MIB = 1024 * 1024
ROWS, WIDTH = 700, 1024
WIDTHS = {"embeds": WIDTH, "deep": 8}


def key_of(number: int) -> str:
    return f"{number:064x}"


def item(seed: int) -> EncodedItem:
    rows = bytes((index * 7 + seed) % 251 for index in range(4 * WIDTH))
    deep = bytes((index + seed) % 253 for index in range(2 * 8 * ROWS))
    tensors = {
        "embeds": RawTensor("float32", (ROWS, WIDTH), rows * ROWS),
        "deep": RawTensor("bfloat16", (ROWS, 8), deep),
    }
    return EncodedItem(MediaInfo(row_count=ROWS), tensors)


class Waiter:
    """A sequence that wants whatever comes."""

    age = (1, 0)

    def ask(self, key: str) -> None:
        """It comes unasked."""

    def layout_known(self, key: str) -> None:
        """Nothing is laid out."""

    def fail(self, error: PerceptError) -> None:
        raise error


class NotingServicer(EmbeddingServicer):
    """Notes the kinds of frames that rows came in."""

    def __init__(self, store: EmbeddingStore, folder: Path | None) -> None:
        super().__init__(store, WIDTHS, folder)
        self.kinds: set[str] = set()

    def _take(self, push: Push, frame: Frame, file: SharedFile | None) -> None:
        self.kinds.add("chunk" if isinstance(frame, RowChunk) else "shared")
        super()._take(push, frame, file)


@dataclass
class LlmSide:
    """The receiving half.

    Attributes:
        address: HOST:PORT.
    """

    store: EmbeddingStore
    arena: EmbeddingArena
    servicer: NotingServicer
    address: str

    def want(self, key: str) -> None:
        self.store.want(Waiter(), key, 0)

    def tensors(self, key: str) -> list[bytes]:
        """What is stored of an item."""
        push = self.store._items[key].push
        assert push is not None and push.complete
        sizes = [4 * WIDTH * ROWS, 2 * 8 * ROWS]
        return [
            bytes(self.arena.view(tensor.offset, size))
            for tensor, size in zip(push.arena_tensors(), sizes, strict=True)
        ]


@asynccontextmanager
async def llm_side(folder: Path | None) -> AsyncIterator[LlmSide]:
    arena = EmbeddingArena.create(256 * MIB)
    store = EmbeddingStore(arena, 64 * MIB, lambda message: None, asyncio.get_running_loop().time)
    servicer = NotingServicer(store, folder)
    server = build_server([embedding_service(servicer)], default_deadline_s=60, max_concurrent_calls=100)
    port = await server.start("127.0.0.1:0")
    await server.serving()
    try:
        yield LlmSide(store, arena, servicer, f"127.0.0.1:{port}")
    finally:
        await server.drain(0)


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def deliver(side: LlmSide, delivery: Delivery, number: int) -> None:
    """Delivers an item and checks every byte of it."""
    side.want(key_of(number))
    await delivery.push(side.address, key_of(number), Kept(item(number)), 30)
    assert side.tensors(key_of(number)) == [bytes(tensor.data) for tensor in item(number).tensors.values()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "rows"
    made.mkdir()
    return made


async def test_rows_lie_in_shared_memory(folder: Path) -> None:
    async with llm_side(folder) as side:
        delivery = Delivery([], RowStage(folder))
        for number in range(3):
            await deliver(side, delivery, number)
        assert side.servicer.kinds == {"shared"}
        assert len(files(folder)) == 1
        await delivery.close()
        assert not files(folder)


async def test_many_at_once(folder: Path) -> None:
    async with llm_side(folder) as side:
        delivery = Delivery([], RowStage(folder))
        await asyncio.gather(*(deliver(side, delivery, number) for number in range(12)))
        assert side.servicer.kinds == {"shared"}
        await delivery.close()


@pytest.mark.parametrize("theirs", [None, "elsewhere"])
async def test_who_has_another_folder_gets_them_over_the_connection(
    folder: Path, tmp_path: Path, theirs: str | None
) -> None:
    (tmp_path / "elsewhere").mkdir()
    async with llm_side(None if theirs is None else tmp_path / theirs) as side:
        delivery = Delivery([], RowStage(folder))
        await deliver(side, delivery, 1)
        assert side.servicer.kinds == {"chunk"}
        await delivery.close()


async def test_an_encoder_without_a_folder(folder: Path) -> None:
    async with llm_side(folder) as side:
        delivery = Delivery([])
        await deliver(side, delivery, 1)
        assert side.servicer.kinds == {"chunk"}
        await delivery.close()


async def test_what_finds_no_room_goes_over_the_connection(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_stage, "BUDGET", MIB)
    async with llm_side(folder) as side:
        delivery = Delivery([], RowStage(folder))
        for number in range(3):
            side.servicer.kinds.clear()
            await deliver(side, delivery, number)
            assert side.servicer.kinds == {"shared", "chunk"}, "the room came back"
        await delivery.close()


async def test_a_full_file_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with llm_side(folder) as side:
        delivery = Delivery([], RowStage(folder))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            await deliver(side, delivery, 1)
        assert side.servicer.kinds == {"chunk"}
        side.servicer.kinds.clear()
        await deliver(side, delivery, 2)
        assert side.servicer.kinds == {"shared"}
        await delivery.close()


async def test_a_folder_that_is_gone(folder: Path) -> None:
    async with llm_side(folder) as side:
        stage = RowStage(folder)
        with pytest.raises(RuntimeError), stage.loan():
            raise RuntimeError
        os.rmdir(folder)
        delivery = Delivery([], stage)
        await deliver(side, delivery, 1)
        assert side.servicer.kinds == {"chunk"}
        await delivery.close()


async def test_after_a_push_that_breaks_off_another_file_is_taken(folder: Path) -> None:
    """The other end may still read, and must not read what comes later."""
    async with llm_side(folder) as side:
        delivery = Delivery([], RowStage(folder))
        (before,) = files(folder)
        side.want(key_of(1))
        too_wide = RawTensor("float32", (ROWS, 8), bytes(4 * 8 * ROWS))
        refused = EncodedItem(MediaInfo(row_count=ROWS), {"embeds": too_wide})
        with pytest.raises(UnavailableError, match="the tensors of an item are"):
            await delivery.push(side.address, key_of(1), Kept(refused), 30)
        assert before not in files(folder)
        await deliver(side, delivery, 2)
        assert side.servicer.kinds == {"shared"}
        await delivery.close()


def test_lent_room_keeps_its_bytes_while_others_come_and_go(folder: Path) -> None:
    stage = RowStage(folder)
    with stage.loan() as first:
        assert first is not None
        place = first.put(memoryview(b"first" * 1000))
        (path,) = folder.iterdir()
        fd = os.open(path, os.O_RDONLY)
        with stage.loan() as second:
            assert second is not None and second.name == first.name
            assert second.put(memoryview(b"second" * 1000)) != place
        with pytest.raises(RuntimeError), stage.loan() as third:
            assert third is not None
            third.put(memoryview(b"third" * 1000))
            raise RuntimeError
        with stage.loan() as fourth:
            assert fourth is not None and fourth.name != first.name
            fourth.put(memoryview(b"fourth" * 1000))
        assert place is not None
        assert os.pread(fd, 5000, place) == b"first" * 1000
        os.close(fd)
    stage.close()
    assert not list(folder.iterdir())


def test_files_of_services_that_died_are_removed_and_others_kept(folder: Path) -> None:
    forgotten = folder / new_file_name()
    forgotten.write_bytes(b"rows")
    (folder / "something else").touch()
    living = RowStage(folder)
    (kept,) = set(folder.iterdir()) - {folder / "something else"}
    RowStage(folder)
    assert kept.exists() and not forgotten.exists() and (folder / "something else").exists()
    living.close()


# Encoders that do wrong


async def push_shared(
    side: LlmSide, name: str, chunk: pb.SharedChunk
) -> tuple[list[tuple[str, str]], grpc.StatusCode, PerceptError | None]:
    """Pushes one chunk out of a file. Returns the service's metadata and how the call ended."""
    side.want(key_of(1))
    header = header_to_wire(key_of(1), MediaInfo(row_count=ROWS), layouts_of(item(1).tensors))
    async with open_channel(side.address) as channel:
        stub: Any = pb_grpc.EmbeddingServiceStub(channel)
        call = stub.PutEmbeddings(timeout=10, metadata=((FILE_METADATA, name),))
        await call.write(pb.PutEmbeddingsRequest(header=header))
        metadata = [tuple(pair) for pair in await call.initial_metadata()]
        try:
            await call.write(pb.PutEmbeddingsRequest(shared=chunk))
            await call.done_writing()
            await call
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return metadata, error.code(), from_rpc_error(error, "llm")
        return metadata, await call.code(), None


BAD_CHUNKS: dict[str, pb.SharedChunk] = {
    "beyond the file": pb.SharedChunk(byte_count=1000, file_offset=5000),
    "partly beyond the file": pb.SharedChunk(byte_count=1000, file_offset=3500),
    "before the file": pb.SharedChunk(byte_count=1000, file_offset=-1),
    "fewer than none": pb.SharedChunk(byte_count=-1000),
    "too many": pb.SharedChunk(byte_count=2 * MIB),
    "not where the tensor goes on": pb.SharedChunk(byte_count=1000, byte_offset=1000),
    "of no tensor": pb.SharedChunk(byte_count=1000, tensor_index=2),
}


@pytest.mark.parametrize("kind", BAD_CHUNKS)
async def test_chunks_that_are_not_there(folder: Path, kind: str) -> None:
    path = folder / new_file_name()
    path.write_bytes(bytes(4000))
    async with llm_side(folder) as side:
        metadata, code, error = await push_shared(side, path.name, BAD_CHUNKS[kind])
        assert metadata == [(FILE_METADATA, path.name)]
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert isinstance(error, InvalidRequestError)
        delivery = Delivery([])
        await deliver(side, delivery, 2)
        await delivery.close()


def _link(path: Path) -> None:
    (path.parent / "target").write_bytes(bytes(4000))
    path.symlink_to(path.parent / "target")


NO_FILES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "a link": _link,
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", NO_FILES)
async def test_what_is_no_file_is_not_read(folder: Path, kind: str) -> None:
    path = folder / new_file_name()
    NO_FILES[kind](path)
    async with llm_side(folder) as side:
        metadata, code, error = await push_shared(side, path.name, pb.SharedChunk(byte_count=1000))
        assert metadata == []
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert error is not None and "no shared file was agreed on" in error.message


@pytest.mark.parametrize("name", ["../rows/FILE", "/FILE", "FILE/", "secret", ""])
async def test_names_lead_nowhere_else(folder: Path, name: str) -> None:
    path = folder / new_file_name()
    path.write_bytes(bytes(4000))
    (folder / "secret").write_bytes(bytes(4000))
    async with llm_side(folder) as side:
        named = name.replace("FILE", path.name)
        metadata, _, error = await push_shared(side, named, pb.SharedChunk(byte_count=1000))
        assert metadata == [] and isinstance(error, InvalidRequestError)
