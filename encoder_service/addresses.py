"""Where embeddings may be delivered to.

Knows HOST:PORT and name resolution. Does not know who listens there.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable, Collection

ADDRESS = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")
"""HOST:PORT, where HOST is a name, an IPv4 address or an IPv6 address in brackets."""

_RESOLVE_INTERVAL_S = 5.0

Resolve = Callable[[str, str], Awaitable[set[str]]]


class AllowedAddresses:
    """The addresses of a setting, and those that their names resolve to.

    A name may stand for many replicas that come and go, and callers name the one
    replica that waits, so names are resolved again while the service runs.

    Args:
        names: HOST:PORT each; empty allows any address.
        resolve: host and port to the addresses they stand for.
    """

    def __init__(self, names: Collection[str], resolve: Resolve | None = None) -> None:
        self._names = frozenset(names)
        self._resolve = resolve or _resolve
        self._resolved: set[str] = set()
        self._next_resolve = 0.0

    async def allow(self, address: str) -> bool:
        """Says whether an address is one of ours."""
        if not self._names or address in self._names or address in self._resolved:
            return True
        if time.monotonic() >= self._next_resolve:
            # Set before the wait, so that unknown addresses cannot make a storm of look-ups.
            self._next_resolve = time.monotonic() + _RESOLVE_INTERVAL_S
            self._resolved = await self._resolve_all()
        return address in self._resolved

    async def _resolve_all(self) -> set[str]:
        found = await asyncio.gather(
            *(self._resolve(host, port) for host, _, port in (name.rpartition(":") for name in self._names))
        )
        return set().union(*found)


async def _resolve(host: str, port: str) -> set[str]:
    """Resolves a name; one that cannot be resolved now stands for nothing."""
    loop = asyncio.get_running_loop()
    try:
        answers = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {_written(str(target[0]), int(target[1])) for _, _, _, _, target in answers}


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
