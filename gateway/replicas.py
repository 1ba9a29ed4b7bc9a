"""The replicas behind a service's names: found, watched, forgotten.

A HOST:PORT stands for every address that the host resolves to. Names are resolved
again and again in the background, and each address is asked for its health.
Knows gRPC's health protocol. Does not know what the service does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.errors import PerceptError, UnavailableError
from shared.rpc.addresses import resolve
from shared.rpc.channel import open_channel
from shared.rpc.status import from_rpc_error

logger = logging.getLogger(__name__)

_WATCH_INTERVAL_S = 1.0
_RESOLVE_INTERVAL_S = 5.0
_RESOLVE_TIMEOUT_S = 5.0
_FIRST_LOOK_S = 2.0
_CALL_TIMEOUT_S = 5.0
# A check that is not answered in time is a busy peer more likely than a dead one: a
# dead one refuses at once, and a vanished one is noticed by keepalive.
_SILENCES_UNTIL_GONE = 4

ModelT = TypeVar("ModelT")
StubT = TypeVar("StubT")

Resolve = Callable[[str], Awaitable[frozenset[str]]]
"""HOST:PORT to IP:PORTs; raises OSError."""


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
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Counts one call as running here."""
        self.pending_count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.pending_count -= 1
            if not self.pending_count:
                self._idle.set()

    async def idle(self) -> None:
        """Returns once no call of ours is running here."""
        await self._idle.wait()

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
        *,
        longest_call_s: float = 600.0,
        resolve: Resolve = resolve,
    ) -> None:
        """
        Args:
            kind: "llm" or "encoder", for logs and texts.
            targets: HOST:PORT each.
            make_stub: makes the service's client.
            ask_model: asks a replica what it serves.
            longest_call_s: how long a call may still run on a replica that left its name, in seconds.
            resolve: looks up the addresses behind a target.
        """
        self.kind = kind
        self._targets = targets
        self._make_stub = make_stub
        self._ask_model = ask_model
        self._longest_call_s = longest_call_s
        self._resolve = resolve
        self._replicas: dict[str, Replica[StubT, ModelT]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._retired: set[asyncio.Task[None]] = set()
        self._finding: asyncio.Task[None] | None = None
        self._look_ups: dict[str, asyncio.Future[frozenset[str]]] = {}
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
        await asyncio.wait({self._find()}, timeout=_FIRST_LOOK_S)
        self._check_all()
        if self._checks:
            await asyncio.wait(self._checks.values(), timeout=_FIRST_LOOK_S)
        self._watching = asyncio.create_task(self._watch(), name=f"watch-{self.kind}")

    async def close(self) -> None:
        """Stops watching and closes every connection."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        under_way: list[asyncio.Future[Any]] = [
            *self._checks.values(),
            *self._retired,
            *self._look_ups.values(),
        ]
        if self._finding is not None:
            under_way.append(self._finding)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        for replica in self.replicas:
            await replica.channel.close()
        self._replicas.clear()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        found_at = loop.time()
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            # On its own, for the checks must go on while a name server keeps silent.
            if not self._replicas or loop.time() - found_at >= _RESOLVE_INTERVAL_S:
                found_at = loop.time()
                self._find()
            self._check_all()

    def _check_all(self) -> None:
        for replica in self.replicas:
            if replica.address not in self._checks:
                # Each on its own: a silent one must not delay news of the others.
                self._checks[replica.address] = asyncio.create_task(self._check(replica))

    def _find(self) -> asyncio.Task[None]:
        """Looks all names up, unless that is under way."""
        if self._finding is None or self._finding.done():
            self._finding = asyncio.create_task(self._find_all(), name=f"find-{self.kind}")
        return self._finding

    async def _find_all(self) -> None:
        try:
            await self._resolve_all()
        except Exception:
            logger.exception("looking for %s replicas", self.kind)

    async def _resolve_all(self) -> None:
        found = await asyncio.gather(*(self._addresses(target) for target in self._targets))
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

    async def _addresses(self, target: str) -> frozenset[str]:
        """What a target stands for; nothing where no answer came in time."""
        look_up = self._look_ups.get(target)
        if look_up is None:
            look_up = self._look_ups[target] = asyncio.ensure_future(self._resolve(target))
        # Its thread cannot be stopped. Waiting on for the same answer next time, and
        # not asking once more, keeps it at one thread for each target.
        await asyncio.wait({look_up}, timeout=_RESOLVE_TIMEOUT_S)
        if not look_up.done():
            return frozenset()
        del self._look_ups[target]
        try:
            return _of_one_version(look_up.result())
        except OSError:
            return frozenset()

    def _note_unresolved(self, targets: set[str]) -> None:
        for target in targets - self._unresolved:
            logger.warning("cannot resolve %s of the %s services; trying on", target, self.kind)
        self._unresolved = targets

    def _retire(self, replica: Replica[StubT, ModelT]) -> None:
        """Closes a replica's channel once its last calls are over."""
        replica.serving = False
        task = asyncio.create_task(self._close_when_idle(replica))
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def _close_when_idle(self, replica: Replica[StubT, ModelT]) -> None:
        try:
            async with asyncio.timeout(self._longest_call_s):
                await replica.idle()
        except TimeoutError:
            logger.warning("calls still run on %s replica %s, which is gone", self.kind, replica.address)
        finally:
            await replica.channel.close()

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
        except grpc.aio.UsageError:
            return False  # The channel was closed meanwhile.
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                return False
            replica.silence_count += 1
            return replica.serving and replica.silence_count < _SILENCES_UNTIL_GONE


@contextmanager
def typed_failures(kind: str, replica: Replica[StubT, ModelT]) -> Iterator[None]:
    """Turns whatever a failed call raises into a typed error.

    Raises:
        UnavailableError: nobody answered, or the channel was closed before or under the call.
        PerceptError: what the service answered.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _peer_error(error, kind, replica) from error
    except grpc.aio.UsageError as error:
        raise UnavailableError(f"the {kind} service is not reachable") from error
    except asyncio.CancelledError:
        # Also what grpc.aio raises where the channel is closed under a call: then
        # nobody has cancelled the task that waits.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise UnavailableError(f"the {kind} service is not reachable") from None


def _peer_error(error: grpc.aio.AioRpcError, kind: str, replica: Replica[StubT, ModelT]) -> PerceptError:
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


def _of_one_version(addresses: frozenset[str]) -> frozenset[str]:
    """A name with addresses of both versions has each replica twice: keeps version 4."""
    of_version_4 = frozenset(address for address in addresses if not address.startswith("["))
    return of_version_4 or addresses
