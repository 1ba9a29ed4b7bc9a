"""Client channels. Knows gRPC's options; knows no service."""

from __future__ import annotations

import grpc

_OPTIONS: list[tuple[str, int]] = [
    # A peer on the same machine or network: a proxy from the environment would
    # only stand in the way.
    ("grpc.enable_http_proxy", 0),
    # A peer that vanished without closing is noticed after 10 s + 5 s, also
    # while a call waits for its first answer.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # The ping's own limit; at its default of a minute it would outlast the one above.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted peer is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # This one is also how long an attempt to connect may take, on a busy machine too.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Each channel its own connection, so that replicas behind one name do not
    # share a broken one.
    ("grpc.use_local_subchannel_pool", 1),
]


def open_channel(address: str) -> grpc.aio.Channel:
    """Opens a channel to HOST:PORT. Message sizes stay at gRPC's defaults."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)
