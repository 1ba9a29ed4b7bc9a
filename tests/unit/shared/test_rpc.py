"""Every typed error crosses a real gRPC connection and comes back as itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.llm.v1 import llm_service_pb2 as pb
from protos.llm.v1 import llm_service_pb2_grpc as pb_grpc
from shared import errors
from shared.rpc.channel import open_channel
from shared.rpc.server import RunningServer, ServiceRegistration, build_server, wait_until_serving
from shared.rpc.status import CODES, from_rpc_error

LEAVES = sorted(CODES, key=lambda kind: kind.__name__)


def all_kinds(kind: type[errors.PerceptError] = errors.PerceptError) -> set[type[errors.PerceptError]]:
    """All subclasses of the base, at any depth."""
    direct = set(kind.__subclasses__())
    return direct.union(*(all_kinds(child) for child in direct)) if direct else direct


class Failing(pb_grpc.LlmServiceServicer):
    """Fails as the model name says: the class name of an error, "bug" or "sleep"."""

    Tokenize = Detokenize = GetStatus = None  # type: ignore[assignment]

    async def GetModel(
        self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.GetModelResponse:
        await asyncio.sleep(30)
        return pb.GetModelResponse()

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> AsyncIterator[pb.GenerateResponse]:
        yield pb.GenerateResponse(delta=pb.Delta(text="before"))
        if request.model == "bug":
            raise ZeroDivisionError("secret text")
        if request.model == "sleep":
            await asyncio.sleep(30)
        kind = getattr(errors, request.model)
        raise kind("what is wrong", param="messages[0]", code="some_code")


@pytest.fixture
async def server() -> AsyncIterator[tuple[RunningServer, str]]:
    """A started server with the failing servicer, and its address."""
    registration = ServiceRegistration(
        "protos.llm.v1.LlmService", lambda s: pb_grpc.add_LlmServiceServicer_to_server(Failing(), s)
    )
    running = build_server([registration], default_deadline_s=0.3, max_concurrent_calls=10)
    port = await running.start("127.0.0.1:0")
    yield running, f"127.0.0.1:{port}"
    await running.drain(0)


async def fail(address: str, model: str) -> errors.PerceptError:
    """Calls Generate, expects one delta and then a failure; returns it as a typed error."""
    async with open_channel(address) as channel:
        call = pb_grpc.LlmServiceStub(channel).Generate(pb.GenerateRequest(model=model))
        texts = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for answer in call:
                texts.append(answer.delta.text)
        assert texts == ["before"]
        return from_rpc_error(caught.value, "llm")


def test_every_error_is_mapped() -> None:
    assert set(CODES) == all_kinds()
    assert len({kind.reason for kind in CODES}) == len(CODES)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
async def test_an_error_comes_back_as_itself(
    server: tuple[RunningServer, str], kind: type[errors.PerceptError]
) -> None:
    error = await fail(server[1], kind.__name__)
    assert type(error) is kind
    assert (error.message, error.param, error.code) == ("what is wrong", "messages[0]", "some_code")


async def test_the_retry_delay_crosses(server: tuple[RunningServer, str]) -> None:
    error = await fail(server[1], "OverloadedError")
    assert isinstance(error, errors.OverloadedError)
    assert error.retry_after == pytest.approx(1.0)


async def test_a_bug_is_withheld(server: tuple[RunningServer, str], caplog: pytest.LogCaptureFixture) -> None:
    error = await fail(server[1], "bug")
    assert type(error) is errors.InternalError
    assert "secret" not in error.message
    assert error.message.split()[-1] in caplog.text


async def test_a_call_without_a_deadline_gets_the_default(server: tuple[RunningServer, str]) -> None:
    assert type(await fail(server[1], "sleep")) is errors.DeadlineError
    async with open_channel(server[1]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.LlmServiceStub(channel).GetModel(pb.GetModelRequest())
    assert type(from_rpc_error(caught.value, "llm")) is errors.DeadlineError


async def test_an_absent_peer_is_unavailable() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.LlmServiceStub(channel).GetModel(pb.GetModelRequest(), timeout=5)
    error = from_rpc_error(caught.value, "llm 127.0.0.1:1")
    assert type(error) is errors.UnavailableError
    assert "llm 127.0.0.1:1" in error.message


async def test_health_follows_the_server(server: tuple[RunningServer, str]) -> None:
    running, address = server
    with pytest.raises(errors.UnavailableError):
        await wait_until_serving(address, 0.2)
    await running.serving()
    await wait_until_serving(address, 2, "protos.llm.v1.LlmService")
    async with open_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await running.not_serving()
        answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_taken_port_is_refused(server: tuple[RunningServer, str]) -> None:
    second = build_server([], default_deadline_s=1, max_concurrent_calls=1)
    with pytest.raises(errors.UnavailableError, match="cannot listen"):
        await second.start(server[1])
