"""The LLM service as a process: its engine dies and comes back, SIGTERM drains, bad starts say why."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest

from protos.llm.v1 import embedding_service_pb2 as embedding_pb
from protos.llm.v1 import llm_service_pb2 as pb
from shared.errors import PerceptError, UnavailableError
from shared.rpc.channel import open_channel
from shared.rpc.server import wait_until_serving
from shared.rpc.status import from_rpc_error
from tests.integration.llm_caller import Caller, Rows, chunk_frame, frames_of, picture, question

pytestmark = pytest.mark.timeout(600)

START = """
import sys, uvloop
from llm_service.service import serve
from llm_service.settings import LlmSettings
uvloop.run(serve(LlmSettings(
    model=sys.argv[1], listen=sys.argv[2], device="cpu", threads=1, kv_cache_gib=0.02,
    embedding_store_gib=0.01, drain_grace_s=20, step_timeout_s=float(sys.argv[3]))))
"""


@dataclass
class Service:
    """A service in a process of its own."""

    process: asyncio.subprocess.Process
    address: str
    caller: Caller

    def engine(self) -> psutil.Process:
        (engine,) = [
            child
            for child in psutil.Process(self.process.pid).children()
            if "llm_service.engine_process" in child.cmdline()
        ]
        return engine


@asynccontextmanager
async def started(folder: Path, port: int, step_timeout_s: float = 300) -> AsyncIterator[Service]:
    address = f"127.0.0.1:{port}"
    command = [sys.executable, "-c", START, str(folder), address, str(step_timeout_s)]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await wait_until_serving(address, 200)
        async with open_channel(address) as channel:
            yield Service(process, address, Caller(channel))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def failure(call: grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]) -> PerceptError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in frames_of(call):
            pass
    return from_rpc_error(caught.value, "llm")


async def test_an_engine_killed_in_every_phase_fails_its_requests_and_comes_back(
    tiny_checkpoint: Callable[[str], Path], free_port: int
) -> None:
    folder = tiny_checkpoint("qwen2_vl")
    rows = await asyncio.to_thread(Rows, folder)
    images = [picture(1), picture(2)]
    async with started(folder, free_port) as service:
        caller = service.caller
        layout = caller.open(question(0, images=images[:1], max_tokens=900))
        prefill = caller.open(question("so", 0, images=images[1:], max_tokens=900))
        for call in (layout, prefill):
            assert (await call.read()).HasField("media_needed")
        header, data = rows.header_and_bytes(images[1])
        push = caller.embeddings.PutEmbeddings(timeout=60)
        await push.write(embedding_pb.PutEmbeddingsRequest(header=header))
        await push.write(chunk_frame(0, data[:256]))
        decode = caller.open(question("go on", max_tokens=1500))
        assert (await decode.read()).HasField("delta")

        service.engine().kill()
        # Who waits for a layout is not yet the engine's, and need not fail.
        for call in (prefill, decode):
            assert isinstance(await failure(call), UnavailableError)
        error = await failure(caller.open(question("and now?")))
        assert isinstance(error, UnavailableError)

        await wait_until_serving(service.address, 200)
        push.cancel()
        request = question("and now?")
        answer = await caller.ask(request)
        assert answer.token_ids[0] == await asyncio.to_thread(rows.expected, request, [])
        assert await caller.push(*rows.header_and_bytes(images[0]))
        # In between it may have been asked again: nothing came for a long time.
        while not (frame := await layout.read()).HasField("delta"):
            assert frame.HasField("media_needed")
        layout.cancel()
        status = await caller.status()
        assert status.engine_start_count == 2


async def test_an_engine_whose_step_never_returns_is_replaced(
    tiny_checkpoint: Callable[[str], Path], free_port: int
) -> None:
    async with started(tiny_checkpoint("qwen2_vl"), free_port, step_timeout_s=4) as service:
        # One who waits for rows is no sign of trouble, however long it takes.
        waiting = service.caller.open(question(0, images=[picture(3)]))
        assert (await waiting.read()).HasField("media_needed")
        running = service.caller.open(question("go on", max_tokens=1500))
        assert (await running.read()).HasField("delta")
        stuck = service.engine()
        stuck.suspend()
        assert isinstance(await failure(running), UnavailableError)
        await asyncio.to_thread(psutil.wait_procs, [stuck], 10)
        assert not stuck.is_running() or stuck.status() == psutil.STATUS_ZOMBIE
        await wait_until_serving(service.address, 200)
        assert (await service.caller.ask(question("and now?"))).finishes
        assert (await service.caller.status()).engine_start_count == 2
        waiting.cancel()


async def test_sigterm_lets_running_requests_end_and_leaves_nothing_behind(
    tiny_checkpoint: Callable[[str], Path], free_port: int
) -> None:
    async with started(tiny_checkpoint("qwen2_vl"), free_port) as service:
        engine = service.engine()
        call = service.caller.open(question("go on", max_tokens=200))
        assert (await call.read()).HasField("delta")
        service.process.send_signal(signal.SIGTERM)
        finishes = [frame.finish async for frame in frames_of(call) if frame.HasField("finish")]
        assert finishes[0].reason == pb.FINISH_REASON_LENGTH
        assert await asyncio.wait_for(service.process.wait(), 30) == 0
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


async def test_a_second_signal_ends_running_requests_at_once(
    tiny_checkpoint: Callable[[str], Path], free_port: int
) -> None:
    async with started(tiny_checkpoint("qwen2_vl"), free_port) as service:
        # Far more than it computes before the test ends.
        calls = [service.caller.open(question(f"go on, {index}", max_tokens=250)) for index in range(40)]
        assert (await calls[0].read()).HasField("delta")
        service.process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.2)
        assert service.process.returncode is None
        service.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(service.process.wait(), 10) == 0
        assert isinstance(await failure(calls[-1]), UnavailableError)


async def test_a_service_killed_outright_takes_its_engine_along(
    tiny_checkpoint: Callable[[str], Path], free_port: int
) -> None:
    async with started(tiny_checkpoint("qwen2_vl"), free_port) as service:
        engine = service.engine()
        service.process.kill()
        await service.process.wait()
        await asyncio.to_thread(psutil.wait_procs, [engine], 10)
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


async def test_a_checkpoint_that_cannot_be_served_ends_the_start_with_the_reason(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, free_port: int
) -> None:
    whole = tiny_checkpoint("qwen2_vl")
    for file in whole.iterdir():
        os.link(file, tmp_path / file.name)
    weights = tmp_path / "model.safetensors"
    weights.unlink()
    from safetensors.numpy import load_file, save_file

    tensors = load_file(whole / "model.safetensors")
    lost = next(name for name in tensors if "layers.1.mlp" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", START, str(tmp_path), f"127.0.0.1:{free_port}", "300"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 250)
    assert process.returncode == 1
    assert "fork" not in stderr.decode(), "gRPC's notice of a fork is nothing for users"
    assert lost.split("layers.")[1] in stderr.decode().splitlines()[-1]


async def test_sigterm_while_it_loads_ends_it_at_once(
    tiny_checkpoint: Callable[[str], Path], free_port: int
) -> None:
    command = [sys.executable, "-c", START, str(tiny_checkpoint("qwen2_vl")), f"127.0.0.1:{free_port}", "300"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    while not (engines := psutil.Process(process.pid).children()):
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, log = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert b"stopping before the language model was ready" in log
    assert b"engine ready" not in log
    assert not any(engine.is_running() for engine in engines)
