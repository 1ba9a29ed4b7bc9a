"""`python -m benchmarks.transfer`: how fast embeddings get from an encoder into an LLM service's memory.

The sending half is the encoder service's `Delivery`, the receiving half the LLM
service's `EmbeddingServicer` with its store, in a process of its own. By turns with
it the same bytes go through shared memory, where both have a folder for it, and
through a bare gRPC stream between the same two processes, in the same chunks,
dropped on arrival. No model is involved.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from benchmarks.running import free_addresses, process
from benchmarks.summary import report_arguments, spread, write_report
from encoder_service.delivery import Delivery
from encoder_service.encoding import Kept
from encoder_service.row_stage import RowStage
from llm_service.embedding_servicer import EmbeddingServicer, embedding_service
from llm_service.embedding_store import EmbeddingStore
from percept.launcher.shared_paths import shared_paths
from shared.embedding_arena import VIRTUAL_FACTOR, EmbeddingArena
from shared.errors import PerceptError
from shared.families.base import EncodedItem, MediaInfo, RawTensor
from shared.rpc.channel import open_channel
from shared.rpc.server import ServiceRegistration, build_server, wait_until_serving
from shared.wire import CHUNK_BYTE_COUNT

MIB = 1024 * 1024
WIDTH = 4096
BUDGET = 512 * MIB
RAW_METHOD = "/protos.benchmark.v1.Raw/Put"


class EveryoneWaits:
    """A waiter that wants whatever comes."""

    age = (1, 0)

    def ask(self, key: str) -> None:
        """It comes unasked."""

    def layout_known(self, key: str) -> None:
        """Nothing is laid out."""

    def fail(self, error: PerceptError) -> None:
        """Ends the program: nothing may fail here."""
        raise error


class WantedEmbeddings(EmbeddingServicer):
    """The LLM service's servicer; each item is wanted while it comes and let go afterwards."""

    def __init__(self, folder: Path) -> None:
        arena = EmbeddingArena.create(BUDGET * VIRTUAL_FACTOR, 64 * MIB)
        self._kept = EmbeddingStore(arena, BUDGET, lambda message: None, time.monotonic)
        super().__init__(self._kept, {"embeds": WIDTH}, folder)

    async def PutEmbeddings(self, request_iterator: AsyncIterator[Any], context: Any) -> Any:
        """Receives one item as the service does."""
        first = await anext(request_iterator.__aiter__())
        waiter, key = EveryoneWaits(), first.header.key
        self._kept.want(waiter, key, 0)
        try:
            return await super().PutEmbeddings(_again(first, request_iterator), context)
        finally:
            self._kept.leave(waiter, [key])
            self._drop_all()

    def _drop_all(self) -> None:
        """Frees what was delivered, as the next request's items would have it done."""
        for item in list(self._kept._items.values()):
            if item.push is not None:
                self._kept._drop(item.push)


async def _again(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for frame in rest:
        yield frame


async def _receive(address: str, folder: Path) -> None:
    """Serves all ways until the process is ended."""
    embeddings = WantedEmbeddings(folder)

    async def put(frames: AsyncIterator[bytes], context: Any) -> bytes:
        count = 0
        async for frame in frames:
            count += len(frame)
        return str(count).encode()

    raw = grpc.method_handlers_generic_handler(
        "protos.benchmark.v1.Raw", {"Put": grpc.stream_unary_rpc_method_handler(put)}
    )
    names = [
        embedding_service(embeddings),
        ServiceRegistration(
            "protos.benchmark.v1.Raw", lambda server: server.add_generic_rpc_handlers((raw,))
        ),
    ]
    server = build_server(names, default_deadline_s=600, max_concurrent_calls=16)
    await server.start(address)
    await server.serving()
    await asyncio.Event().wait()


class Sender:
    """Sends one item all ways, as often as wanted."""

    def __init__(self, address: str, byte_count: int, folder: Path) -> None:
        rows = byte_count // (2 * WIDTH)
        data = secrets.token_bytes(rows * 2 * WIDTH)
        tensors = {"embeds": RawTensor("bfloat16", (rows, WIDTH), data)}
        self._item = Kept(EncodedItem(MediaInfo(row_count=rows), tensors))
        self._data = memoryview(data)
        self._address = address
        self._delivery = Delivery(())
        self._shared = Delivery((), RowStage(folder))
        self._channel = open_channel(address)
        self._numbers = itertools.count()

    async def deliver(self) -> float:
        """Seconds of a delivery over the connection, header to answer."""
        return await self._push(self._delivery)

    async def share(self) -> float:
        """Seconds of a delivery in shared memory, header to answer."""
        return await self._push(self._shared)

    async def _push(self, delivery: Delivery) -> float:
        key = f"{next(self._numbers):064x}"
        begin = time.perf_counter()
        await delivery.push(self._address, key, self._item, 60)
        return time.perf_counter() - begin

    async def raw(self) -> float:
        """Seconds of the bare stream, first byte to answer."""
        call: grpc.aio.StreamUnaryCall[bytes, bytes] = self._channel.stream_unary(RAW_METHOD)()
        begin = time.perf_counter()
        for start in range(0, len(self._data), CHUNK_BYTE_COUNT):
            await call.write(bytes(self._data[start : start + CHUNK_BYTE_COUNT]))
        await call.done_writing()
        answer = await call
        assert int(answer) == len(self._data)
        return time.perf_counter() - begin

    async def close(self) -> None:
        """Closes all channels."""
        await self._delivery.close()
        await self._shared.close()
        await self._channel.close()


def measure(*, byte_count: int = 64 * MIB, repeats: int = 20) -> dict[str, Any]:
    """Returns the speed of deliveries of both kinds over that of a bare stream, and all three."""
    import uvloop

    with shared_paths() as shared:
        assert shared.rows is not None, "this machine has no /dev/shm"
        folder = Path(shared.rows)
        with _receiver(folder) as address:
            return uvloop.run(_measure(address, byte_count, repeats, folder))


@contextmanager
def _receiver(folder: Path) -> Any:
    (address,) = free_addresses(1)
    with process(["-m", "benchmarks.transfer", "--receive", address, "--folder", str(folder)]):
        yield address


async def _measure(address: str, byte_count: int, repeats: int, folder: Path) -> dict[str, Any]:
    await wait_until_serving(address, 60)
    sender = Sender(address, byte_count, folder)
    ways = {"delivery": sender.deliver, "shared": sender.share, "raw": sender.raw}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-2, repeats):
        # Each goes first every other time.
        for name in list(ways) if turn % 2 else reversed(list(ways)):
            taken = await ways[name]()
            if turn >= 0:
                seconds[name].append(taken)
    await sender.close()
    print(f"transfer: {repeats} of {repeats}", flush=True)
    gigabytes = byte_count / 1e9

    def ratio(name: str) -> dict[str, Any]:
        return spread([bare / ours for ours, bare in zip(seconds[name], seconds["raw"], strict=True)])

    rates = {f"{name}_gb_per_s": spread([gigabytes / s for s in seconds[name]]) for name in ways}
    return {
        "speed_ratio": ratio("delivery"),
        "shared_speed_ratio": ratio("shared"),
        **rates,
        "mib": byte_count // MIB,
    }


def main() -> int:
    """Measures and prints; always 0."""
    parser = report_arguments("transfer", __doc__)
    parser.add_argument("--mib", type=int, default=64, help="size of an item")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--receive", metavar="ADDRESS", help="be the receiving process")
    parser.add_argument("--folder", type=Path, help="of the receiving process: where rows are shared")
    chosen = parser.parse_args()
    if chosen.receive:
        import uvloop

        uvloop.run(_receive(chosen.receive, chosen.folder))
        return 0
    write_report(measure(byte_count=chosen.mib * MIB, repeats=chosen.repeats), chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
