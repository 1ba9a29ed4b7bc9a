"""What a HOST:PORT stands for. Knows name resolution; does not know who listens there."""

from __future__ import annotations

import asyncio
import ipaddress
import socket


async def resolve(address: str) -> frozenset[str]:
    """Resolves HOST:PORT with the system's resolver, off the event loop.

    Has no time limit of its own: a name server that keeps silent is waited for.

    Args:
        address: HOST:PORT; an IPv6 host in brackets.

    Returns:
        IP:PORT for every address of both versions, an IPv6 one in brackets and in its shortest form.

    Raises:
        OSError: the host does not resolve, or the text is no HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        answers = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except ValueError as error:  # Also of a name that no host can have.
        raise OSError(f"cannot resolve {address!r}") from error
    return frozenset(_written(str(target[0]), int(target[1])) for *_, target in answers)


def _written(host: str, port: int) -> str:
    ip = ipaddress.ip_address(host.partition("%")[0])
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def checked_address(address: str, lowest_port: int = 0) -> str:
    """Returns HOST:PORT as it is.

    Raises:
        ValueError: it is not of that form, or the port out of range.
    """
    host, colon, port = address.rpartition(":")
    if (
        not colon
        or not port.isdigit()
        or not lowest_port <= int(port) < 65536
        or (":" in host) != ("]" in host)
    ):
        raise ValueError(f"write {address!r} as HOST:PORT (an IPv6 address in brackets)")
    return address
