"""The replicas behind a service's names: found, watched, forgotten.

A HOST:PORT stands for every address that the host resolves to. Names are resolved
again and again in the background, and each address is asked for its health.
Knows gRPC's health protocol. Does not know what the service does.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.errors import PerceptError
from shared.rpc.channel import open_channel
from shared.rpc.status import from_rpc_error

logger = logging.getLogger(__name__)

_WATCH_INTERVAL_S = 1.0
_RESOLVE_INTERVAL_S = 5.0
_FIRST_LOOK_S = 2.0
_CALL_TIMEOUT_S = 5.0
# A check that is not answered in time is a busy peer more likely than a dead one: a
# dead one refuses at once, and a vanished one is noticed by keepalive.
_SILENCES_UNTIL_GONE = 4

ModelT = TypeVar("ModelT")
StubT = TypeVar("StubT")


class Replica(Generic[StubT, ModelT]):
    """One address of a service.

    Attributes:
        address: IP:PORT.
        stub: the service's client.
        model: what it said it serves; None until it was asked.
        serving: whether it reported SERVING last, and no call found it gone since.
        pending_count: calls of ours that are running there.
    """

    def __init__(self, address: str, make_stub: Callable[[grpc.aio.Channel], StubT]) -> None:
        self.address = address
        self.channel = open_channel(address)
        self.stub = make_stub(self.channel)
        self.model: ModelT | None = None
        self.serving = False
        self.pending_count = 0
        self.silence_count = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Counts one call as running here."""
        self.pending_count += 1
        try:
            yield
        finally:
            self.pending_count -= 1

    def gone(self) -> None:
        """Notes that a call found nobody here; the next health check may mend it."""
        self.serving = False


class ReplicaSet(Generic[StubT, ModelT]):
    """All replicas of one kind of service, watched in the background."""

    def __init__(
        self,
        kind: str,
        targets: Sequence[str],
        make_stub: Callable[[grpc.aio.Channel], StubT],
        ask_model: Callable[[StubT], Awaitable[ModelT]],
    ) -> None:
        """
        Args:
            kind: "llm" or "encoder", for logs and texts.
            targets: HOST:PORT each.
            make_stub: makes the service's client.
            ask_model: asks a replica what it serves.
        """
        self.kind = kind
        self._targets = targets
        self._make_stub = make_stub
        self._ask_model = ask_model
        self._replicas: dict[str, Replica[StubT, ModelT]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._retired: set[asyncio.Task[None]] = set()
        self._model: ModelT | None = None
        self._unresolved: set[str] = set()

    @property
    def replicas(self) -> list[Replica[StubT, ModelT]]:
        """All known replicas, serving or not."""
        return list(self._replicas.values())

    @property
    def serving(self) -> list[Replica[StubT, ModelT]]:
        """Those that can be called."""
        return [replica for replica in self._replicas.values() if replica.serving]

    @property
    def model(self) -> ModelT | None:
        """What the replicas serve, as the last that was asked said; they serve the same."""
        return self._model

    async def start(self) -> None:
        """Looks once, then watches in the background."""
        await self._look(resolve=True)
        if self._checks:
            await asyncio.wait(self._checks.values(), timeout=_FIRST_LOOK_S)
        self._watching = asyncio.create_task(self._watch(), name=f"watch-{self.kind}")

    async def close(self) -> None:
        """Stops watching and closes every connection."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        under_way = [*self._checks.values(), *self._retired]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        for replica in self.replicas:
            await replica.channel.close()
        self._replicas.clear()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        resolved_at = loop.time()
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            resolve = loop.time() - resolved_at >= _RESOLVE_INTERVAL_S
            if resolve:
                resolved_at = loop.time()
            try:
                await self._look(resolve=resolve)
            except Exception:
                logger.exception("watching %s replicas", self.kind)

    async def _look(self, *, resolve: bool) -> None:
        if resolve or not self._replicas:
            await self._resolve()
        for replica in self.replicas:
            if replica.address not in self._checks:
                # Each on its own: a silent one must not delay news of the others.
                self._checks[replica.address] = asyncio.create_task(self._check(replica))

    async def _resolve(self) -> None:
        found = await asyncio.gather(*(_addresses(target) for target in self._targets))
        self._note_unresolved(
            {target for target, group in zip(self._targets, found, strict=True) if not group}
        )
        addresses = {address for group in found for address in group}
        for address in addresses - self._replicas.keys():
            logger.info("found %s replica %s", self.kind, address)
            self._replicas[address] = Replica(address, self._make_stub)
        if self._unresolved:
            return  # A name that cannot be resolved right now says nothing about its addresses.
        for address in self._replicas.keys() - addresses:
            logger.info("%s replica %s is gone from its name", self.kind, address)
            self._retire(self._replicas.pop(address))

    def _note_unresolved(self, targets: set[str]) -> None:
        for target in targets - self._unresolved:
            logger.warning("cannot resolve %s of the %s services; trying on", target, self.kind)
        self._unresolved = targets

    def _retire(self, replica: Replica[StubT, ModelT]) -> None:
        """Closes a replica's channel once its last calls are over."""
        replica.serving = False
        task = asyncio.create_task(replica.channel.close(grace=60.0))
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def _check(self, replica: Replica[StubT, ModelT]) -> None:
        try:
            serving = await self._is_serving(replica)
        finally:
            del self._checks[replica.address]
        if serving != replica.serving:
            logger.info("%s replica %s is %sserving", self.kind, replica.address, "" if serving else "not ")
        replica.serving = serving and self._replicas.get(replica.address) is replica

    async def _is_serving(self, replica: Replica[StubT, ModelT]) -> bool:
        stub: Any = health_pb2_grpc.HealthStub(replica.channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_TIMEOUT_S)
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                return False
            if not replica.serving or replica.model is None:
                replica.model = self._model = await self._ask_model(replica.stub)
            replica.silence_count = 0
            return True
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                return False
            replica.silence_count += 1
            return replica.serving and replica.silence_count < _SILENCES_UNTIL_GONE


def peer_error(error: grpc.aio.AioRpcError, kind: str, replica: Replica[StubT, ModelT]) -> PerceptError:
    """Returns the typed error of a failed call, and notes a replica that is gone.

    The address is for the log alone: callers of the gateway need not know it.
    """
    logger.info("call to %s %s failed: %s %s", kind, replica.address, error.code().name, error.details())
    typed = from_rpc_error(error, f"the {kind} service")
    if error.code() is grpc.StatusCode.UNAVAILABLE and not _is_rich(error):
        # gRPC's own status: nobody answered. A service that drains says so itself.
        replica.gone()
    return typed


def _is_rich(error: grpc.aio.AioRpcError) -> bool:
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())


async def _addresses(target: str) -> list[str]:
    """Resolves HOST:PORT to every IP:PORT; none where that fails."""
    host, _, port = target.rpartition(":")
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )
    except (OSError, ValueError):
        return []
    addresses = {ipaddress.ip_address(str(answer[4][0]).split("%")[0]) for answer in answers}
    # A name with addresses of both versions has each replica twice.
    version = min(address.version for address in addresses)
    return [
        f"[{address}]:{port}" if version == 6 else f"{address}:{port}"
        for address in addresses
        if address.version == version
    ]
