"""The encoder service as a process: how it ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from PIL import Image

from protos.encoder.v1 import encoder_service_pb2, encoder_service_pb2_grpc
from protos.media.v1 import media_pb2
from shared.content_key import content_key
from shared.rpc.channel import open_channel
from shared.rpc.server import wait_until_serving
from tests.unit.encoder_service.receiver import receiving
from tests.unit.encoder_service.waiting import until

EncodeCall = grpc.aio.StreamStreamCall[encoder_service_pb2.EncodeRequest, encoder_service_pb2.EncodeResponse]

# Starting imports torch twice; a busy machine takes its time over that.
pytestmark = pytest.mark.timeout(300)

PROGRAM = """
import json, sys, uvloop
from encoder_service.service import serve
from encoder_service.settings import EncoderSettings
uvloop.run(serve(EncoderSettings(**json.loads(sys.argv[1]))))
"""


def free_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@asynccontextmanager
async def encoder_process(model: Path, address: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    settings = {"model": str(model), "listen": address, "workers": 2, "drain_grace_s": 10}
    command = [sys.executable, "-c", PROGRAM, json.dumps(settings)]
    process = await asyncio.to_thread(subprocess.Popen, command)
    try:
        await wait_until_serving(address, 120)
        yield process
    finally:
        process.kill()
        process.wait()


def picture(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (90, 90), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


async def start_encode(
    stub: encoder_service_pb2_grpc.EncoderServiceAsyncStub, payload: bytes, llm: str
) -> EncodeCall:
    call = stub.Encode(timeout=30)
    key = content_key(media_pb2.MODALITY_IMAGE, media_pb2.MEDIA_FORM_FILE, "", payload)
    item = media_pb2.MediaItem(key=key, modality=media_pb2.MODALITY_IMAGE, form=media_pb2.MEDIA_FORM_FILE)
    header = encoder_service_pb2.EncodeHeader(item=item, byte_count=len(payload), delivery_address=llm)
    await call.write(encoder_service_pb2.EncodeRequest(header=header))
    await call.read()
    await call.write(encoder_service_pb2.EncodeRequest(chunk=payload))
    await call.done_writing()
    return call


async def finished(call: EncodeCall) -> grpc.StatusCode:
    # The status comes only after the last frame was read.
    while await call.read() is not grpc.aio.EOF:
        pass
    return await call.code()


def have_ended(processes: list[psutil.Process]) -> bool:
    # Nobody may reap orphans where this runs: a zombie has ended too.
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def children_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


async def test_a_killed_service_leaves_no_process_behind(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    address = free_address()
    async with encoder_process(tiny_checkpoint("qwen2_vl"), address) as process:
        children = children_of(process)
        assert len(children) >= 3, "the template and two workers"
        process.kill()
        await until(lambda: have_ended(children), 30)


async def test_a_service_under_load_survives_its_workers_and_drains_on_a_signal(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    address = free_address()
    async with (
        encoder_process(tiny_checkpoint("qwen2_vl"), address) as process,
        receiving() as (receiver, llm),
        open_channel(address) as channel,
    ):
        stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)
        calls = [await start_encode(stub, picture(colour), llm) for colour in range(60)]
        workers = _workers(process)
        # All at once: an item that is given to another worker in between would die with that one, too.
        os.kill(process.pid, signal.SIGSTOP)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
        os.kill(process.pid, signal.SIGCONT)
        codes = await asyncio.gather(*(finished(call) for call in calls))
        assert set(codes) == {grpc.StatusCode.OK}
        assert len(receiver.items) == 60
        await drain(process, stub, address)


async def drain(
    process: subprocess.Popen[bytes],
    stub: encoder_service_pb2_grpc.EncoderServiceAsyncStub,
    address: str,
) -> None:
    """A running call is waited for, new ones find nobody, and no process stays."""
    children = children_of(process)
    async with receiving("stall") as (receiver, llm):
        call = await start_encode(stub, picture(100), llm)
        await asyncio.wait_for(receiver.header_came.wait(), 10)
        process.send_signal(signal.SIGTERM)
        await until(lambda: _refuses(address))
        assert process.poll() is None
        call.cancel()
        assert await asyncio.to_thread(process.wait, 30) == 0
    await until(lambda: have_ended(children), 30)


async def test_a_second_signal_ends_a_running_call_at_once(tiny_checkpoint: Callable[[str], Path]) -> None:
    address = free_address()
    async with (
        encoder_process(tiny_checkpoint("qwen2_vl"), address) as process,
        receiving("stall") as (receiver, llm),
        open_channel(address) as channel,
    ):
        stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)
        call = await start_encode(stub, picture(100), llm)
        await asyncio.wait_for(receiver.header_came.wait(), 10)
        process.send_signal(signal.SIGINT)
        await until(lambda: _refuses(address))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        # Sooner than the ten seconds that the call had.
        assert await asyncio.to_thread(process.wait, 6) == 0
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            await finished(call)


def _workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The template process's children."""
    return [child for child in children_of(process) if child.ppid() != process.pid]


def _refuses(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0
