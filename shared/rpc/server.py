"""A gRPC server with what every service has: health, reflection, errors, deadlines.

Knows how to start, announce and drain. Does not know what is served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shared.errors import UnavailableError
from shared.rpc.interceptor import ErrorInterceptor

logger = logging.getLogger(__name__)

_OPTIONS: list[tuple[str, int]] = [
    # Two servers on one port would split the calls between them unnoticed.
    ("grpc.so_reuseport", 0),
    # Clients ping every 10 s; be lenient rather than answer GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


@dataclass(frozen=True, slots=True)
class ServiceRegistration:
    """One service to serve.

    Attributes:
        full_name: name on the wire, for example `protos.llm.v1.LlmService`.
        register: adds the servicer, for example
            `lambda server: add_LlmServiceServicer_to_server(servicer, server)`.
    """

    full_name: str
    register: Callable[[grpc.aio.Server], None]


class RunningServer:
    """A server from its start to its drained end."""

    def __init__(self, server: grpc.aio.Server, names: Sequence[str]) -> None:
        self._server = server
        self._names = ("", *names)
        self._health = health.aio.HealthServicer()
        self._hurrying: asyncio.Task[None] | None = None
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    async def start(self, address: str) -> int:
        """Binds HOST:PORT (port 0 for any) and starts, NOT_SERVING. Returns the port.

        Raises:
            UnavailableError: the address cannot be bound.
        """
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if port == 0:
            raise UnavailableError(f"cannot listen on {address}: the port is in use or not ours to bind")
        await self.not_serving()
        await self._server.start()
        return port

    async def serving(self) -> None:
        """Announces SERVING for every service."""
        await self._announce(health_pb2.HealthCheckResponse.SERVING)

    async def not_serving(self) -> None:
        """Announces NOT_SERVING for every service; calls are still taken."""
        await self._announce(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def drain(self, grace_s: float) -> None:
        """Announces NOT_SERVING, lets running calls end for `grace_s`, then stops."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    def hurry(self) -> None:
        """Ends running calls now: a `drain` under way waits no longer."""
        self._hurrying = self._hurrying or asyncio.create_task(self._server.stop(None))

    async def _announce(self, status: Any) -> None:
        for name in self._names:
            await self._health.set(name, status)


def build_server(
    registrations: Sequence[ServiceRegistration], *, default_deadline_s: float, max_concurrent_calls: int
) -> RunningServer:
    """Builds a server over the running event loop.

    Args:
        registrations: the services.
        default_deadline_s: deadline of a call that came without one, in seconds.
        max_concurrent_calls: bound above which gRPC answers RESOURCE_EXHAUSTED
            by itself; set it above the services' own bounds, so that those
            speak first.
    """
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor(default_deadline_s)],
        options=_OPTIONS,
        maximum_concurrent_rpcs=max_concurrent_calls,
    )
    for registration in registrations:
        registration.register(server)
    names = [registration.full_name for registration in registrations]
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return RunningServer(server, names)


async def wait_until_serving(address: str, timeout_s: float, service: str = "") -> None:
    """Waits until a server reports SERVING.

    Raises:
        UnavailableError: it did not within `timeout_s` seconds.
    """
    from shared.rpc.channel import open_channel

    async with open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            async with asyncio.timeout(timeout_s):
                while not await _is_serving(stub, request):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise UnavailableError(f"{address} is not serving after {timeout_s:g} s") from None


async def _is_serving(stub: Any, request: health_pb2.HealthCheckRequest) -> bool:
    try:
        answer = await stub.Check(request, timeout=2.0)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
