"""The replicas of one kind of service, as a client sees them: addresses and channels.

A HOST:PORT stands for every address that its host resolves to. Knows no service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import grpc

from shared.errors import PerceptError, UnavailableError
from shared.rpc.addresses import resolve
from shared.rpc.channel import open_channel
from shared.rpc.status import from_rpc_error

StubT = TypeVar("StubT")

_RESOLVED_FOR_S = 5.0
_RESOLVE_TIMEOUT_S = 5.0


class Replica(Generic[StubT]):
    """One address of a service.

    Attributes:
        address: IP:PORT.
        stub: the service's client.
        pending_count: calls of ours that are running there.
    """

    def __init__(self, kind: str, address: str, make_stub: Callable[[grpc.aio.Channel], StubT]) -> None:
        self.address = address
        self.channel = open_channel(address)
        self.stub = make_stub(self.channel)
        self.pending_count = 0
        self._kind = kind

    @contextmanager
    def call(self) -> Iterator[None]:
        """Counts a call as running here, and turns its failure into a typed error.

        Raises:
            UnavailableError: nobody answered, or the client was closed meanwhile.
            PerceptError: what the service answered.
        """
        self.pending_count += 1
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._typed(error) from error
        except grpc.aio.UsageError as error:
            raise UnavailableError("the client is closed") from error
        except asyncio.CancelledError:
            # Also what grpc.aio raises where the channel is closed under a call: then
            # nobody has cancelled the task that waits.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise UnavailableError("the client is closed") from None
        finally:
            self.pending_count -= 1

    def _typed(self, error: grpc.aio.AioRpcError) -> PerceptError:
        return from_rpc_error(error, f"the {self._kind} service at {self.address}")


class Replicas(Generic[StubT]):
    """All addresses behind a client's targets; connections are opened when first used."""

    def __init__(
        self, kind: str, targets: Sequence[str], make_stub: Callable[[grpc.aio.Channel], StubT]
    ) -> None:
        """
        Args:
            kind: "encoder" or "LLM", for texts.
            targets: HOST:PORT each.
        """
        self._kind = kind
        self._targets = targets
        self._make_stub = make_stub
        self._replicas: dict[str, Replica[StubT]] = {}
        self._current: list[Replica[StubT]] = []
        self._resolved_at = -_RESOLVED_FOR_S
        self._resolving = asyncio.Lock()

    async def all(self) -> list[Replica[StubT]]:
        """The replicas that the targets stand for now.

        Raises:
            UnavailableError: no target can be resolved.
        """
        async with self._resolving:
            now = asyncio.get_running_loop().time()
            if not self._current or now - self._resolved_at >= _RESOLVED_FOR_S:
                await self._resolve()
                self._resolved_at = now
        return list(self._current)

    async def close(self) -> None:
        """Closes every connection; calls that still run fail."""
        replicas, self._replicas, self._current = list(self._replicas.values()), {}, []
        for replica in replicas:
            await replica.channel.close()

    async def _resolve(self) -> None:
        found = await asyncio.gather(*(self._addresses(target) for target in self._targets))
        addresses = list(dict.fromkeys(address for group in found for address in group))
        if not addresses and not self._current:
            raise UnavailableError(f"cannot resolve {', '.join(self._targets)} of the {self._kind} service")
        for address in addresses:
            if address not in self._replicas:
                self._replicas[address] = Replica(self._kind, address, self._make_stub)
        # Those that left their name keep their connections: calls may still run on them.
        self._current = [self._replicas[address] for address in addresses] or self._current

    async def _addresses(self, target: str) -> list[str]:
        try:
            async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
                found = sorted(await resolve(target))
        except (OSError, TimeoutError):
            return []
        # A name with addresses of both versions has each replica twice.
        return [address for address in found if not address.startswith("[")] or found
