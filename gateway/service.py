"""Runs the gateway: one HTTP server until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

import uvicorn

from gateway.app import create_app
from gateway.parts import Gateway
from gateway.settings import GatewaySettings
from shared.collection import keep_loaded
from shared.telemetry import configure_logging

logger = logging.getLogger(__name__)

# How long running requests may still take once we were told to stop.
_GRACE_S = 15
_KEEP_ALIVE_S = 75


async def serve(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests end for a while.

    A second signal ends them at once.
    """
    configure_logging("gateway", settings.log_level)
    # The server's own lines say less than ours, in more lines.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = build_server(Gateway(settings), settings)
    keep_loaded()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    try:
        await server.serve()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    if not server.started:
        raise SystemExit(1)


class GatewayServer(uvicorn.Server):
    """An HTTP server that leaves signals to its caller."""

    def __init__(self, config: uvicorn.Config, client_timeout_s: float) -> None:
        """
        Args:
            client_timeout_s: how long a client may leave what we sent unread, in seconds.
        """
        super().__init__(config)
        self._client_timeout_s = client_timeout_s

    def stop(self) -> None:
        """Asks it to end; asked again, it ends at once."""
        if not self.should_exit:
            logger.info("answers under way may take up to %d s; a second signal ends them at once", _GRACE_S)
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in self.servers:
            for sock in listener.sockets:
                _limit_unread(sock, self._client_timeout_s)
                host, port = sock.getsockname()[:2]
                logger.info("gateway listens on http://%s:%d/v1", host, port)


def build_server(gateway: Gateway, settings: GatewaySettings) -> GatewayServer:
    """Builds the HTTP server on the settings' address."""
    host, _, port = settings.listen.rpartition(":")
    config = uvicorn.Config(
        create_app(gateway),
        host=host.strip("[]") or "0.0.0.0",
        port=int(port),
        # The faster parser bounds no head, and drops the body behind an offer of HTTP/2.
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
        backlog=2048,
    )
    return GatewayServer(config, settings.client_timeout_s)


def _limit_unread(listener: socket.socket, seconds: float) -> None:
    """Has the system drop connections whose peers take nothing for so long.

    A connection that is closed with bytes to send lives on until they are sent.
    Accepted connections inherit the option; systems without it rely on keepalive.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, option, max(1, int(seconds * 1000)))
