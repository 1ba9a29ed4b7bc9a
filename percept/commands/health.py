"""`percept health`: asks a service whether it is ready, for probes and people."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

TIMEOUT_S = 5.0


def health(
    address: Annotated[
        str,
        typer.Argument(
            help="HOST:PORT of an encoder or LLM, or the http:// URL of a gateway.", metavar="ADDRESS"
        ),
    ],
) -> None:
    """Ends with status 0 when the service is ready, with 1 and the reason otherwise."""
    import grpc
    import httpx

    try:
        asyncio.run(_check(address))
    except (grpc.aio.AioRpcError, httpx.HTTPError, NotReadyError) as error:
        print(f"{address} is not ready: {_reason(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    typer.echo(f"{address} is ready")


class NotReadyError(Exception):
    """A service answered that it does not serve."""


def _reason(error: Exception) -> str:
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error)


async def _check(address: str) -> None:
    if address.startswith(("http://", "https://")):
        await check_gateway(address, TIMEOUT_S)
    else:
        await _check_rpc(address)


async def _check_rpc(address: str) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from shared.rpc.channel import open_channel

    async with open_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise NotReadyError(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


async def check_gateway(url: str, timeout_s: float) -> dict[str, Any]:
    """Asks a gateway's /health and returns what it says.

    Raises:
        httpx.HTTPError: it could not be reached, or it said that it is not ready.
    """
    import httpx

    async with httpx.AsyncClient(timeout=timeout_s, trust_env=False) as client:
        answer = (await client.get(url.rstrip("/") + "/health")).raise_for_status()
    health: dict[str, Any] = answer.json()
    return health
