"""Replicas are found and checked, whatever name servers do."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway import replicas
from gateway.conductor import Assignment, Conductor
from gateway.replicas import ReplicaSet
from protos.llm.v1 import llm_service_pb2
from protos.llm.v1.llm_service_pb2_grpc import LlmServiceStub
from shared.deadline import Deadline
from shared.errors import UnavailableError
from tests.integration.scripted_services import ScriptedLlm, start_llm, until


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "_WATCH_INTERVAL_S": 0.05,
        "_RESOLVE_INTERVAL_S": 0.1,
        "_RESOLVE_TIMEOUT_S": 0.2,
        "_FIRST_LOOK_S": 0.5,
    }.items():
        monkeypatch.setattr(replicas, name, seconds)


async def ask(stub: object) -> str:
    return "tiny"


class Names:
    """A name server that answers so often, and then keeps silent."""

    def __init__(self, address: str, answer_count: int) -> None:
        self.address = address
        self.left = answer_count
        self.asked = 0

    async def resolve(self, target: str) -> frozenset[str]:
        self.asked += 1
        self.left -= 1
        if self.left < 0:
            await asyncio.Event().wait()
        return frozenset({self.address})


async def test_a_silent_name_server_does_not_stop_the_checks() -> None:
    llm = ScriptedLlm()
    server = await start_llm(llm)
    names = Names(llm.address, answer_count=1)
    found = ReplicaSet("llm", ["llm:1"], LlmServiceStub, ask, resolve=names.resolve)
    try:
        await found.start()
        assert [replica.address for replica in found.serving] == [llm.address]
        await until(lambda: names.asked == 2)
        await asyncio.sleep(0.5)
        # One look-up is under way, and no second one beside it.
        assert names.asked == 2
        await server.drain(0)
        await until(lambda: not found.serving, seconds=5.0)
        server = await start_llm(llm, llm.address)
        await until(lambda: bool(found.serving), seconds=5.0)
    finally:
        await found.close()
        await server.drain(0)


async def test_a_silent_name_server_does_not_hold_up_the_start() -> None:
    found = ReplicaSet("llm", ["llm:1"], LlmServiceStub, ask, resolve=Names("", 0).resolve)
    start = time.monotonic()
    await found.start()
    assert time.monotonic() - start < 3
    assert found.replicas == []
    await found.close()


async def test_a_name_without_an_answer_does_not_hide_another() -> None:
    async def resolve(target: str) -> frozenset[str]:
        if target == "silent:1":
            await asyncio.Event().wait()
        return frozenset({"127.0.0.1:9"})

    found = ReplicaSet("llm", ["silent:1", "llm:1"], LlmServiceStub, ask, resolve=resolve)
    await found.start()
    assert [replica.address for replica in found.replicas] == ["127.0.0.1:9"]
    await found.close()


async def test_a_check_on_a_closed_channel_is_an_answer() -> None:
    llm = ScriptedLlm()
    server = await start_llm(llm)
    found = ReplicaSet("llm", [llm.address], LlmServiceStub, ask)
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    try:
        await found.start()
        await found.replicas[0].channel.close()
        await until(lambda: not found.serving, seconds=5.0)
        await asyncio.sleep(0.2)
        assert faults == []
    finally:
        await found.close()
        await server.drain(0)


async def test_a_name_with_both_versions_is_called_by_version_4() -> None:
    async def resolve(target: str) -> frozenset[str]:
        return frozenset({"127.0.0.1:9", "127.0.0.2:9", "[::1]:9"})

    found = ReplicaSet("llm", ["llm:9"], LlmServiceStub, ask, resolve=resolve)
    await found.start()
    assert {replica.address for replica in found.replicas} == {"127.0.0.1:9", "127.0.0.2:9"}
    await found.close()


class _Breaking:
    @property
    def serving(self) -> list[object]:
        raise asyncio.CancelledError


async def test_readers_learn_of_whatever_ends_the_writer() -> None:
    conductor = Conductor(_Breaking(), _Breaking())  # type: ignore[arg-type]
    assignment = Assignment(llm_service_pb2.GenerateRequest(), [], "", Deadline.after(30), {})
    async with asyncio.timeout(5), conductor.generate(assignment) as frames:
        with pytest.raises(UnavailableError):
            await anext(frames)
