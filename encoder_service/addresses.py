"""Where embeddings may be delivered to.

Knows HOST:PORT and when names are looked up. Does not know who listens there.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from shared.rpc.addresses import resolve as resolve_by_system

logger = logging.getLogger(__name__)

ADDRESS = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")
"""HOST:PORT, where HOST is a name, an IPv4 address or an IPv6 address in brackets."""

_LOOK_UP_INTERVAL_S = 1.0
_LOOK_UP_LIMIT_S = 3.0

Resolve = Callable[[str], Coroutine[Any, Any, frozenset[str]]]


class AllowedAddresses:
    """The addresses of a setting, and those that their names stand for.

    A name may stand for many replicas that come and go, and callers name the one
    replica that waits, so an address that is not known starts a look-up. Callers
    who come meanwhile wait for the same one.

    Args:
        names: HOST:PORT each; empty allows any address.
        resolve: HOST:PORT to what it stands for; OSError where it stands for nothing.
    """

    def __init__(self, names: Collection[str], resolve: Resolve = resolve_by_system) -> None:
        self._names = frozenset(names)
        self._resolve = resolve
        self._found: dict[str, frozenset[str]] = {}
        self._resolving: dict[str, asyncio.Task[frozenset[str]]] = {}
        self._look_up: asyncio.Task[None] | None = None
        self._next_look_up = 0.0

    async def allow(self, address: str) -> bool:
        """Says whether an address is one of ours. Those written in the setting need no look-up."""
        if not self._names or self._is_known(address):
            return True
        if self._look_up is None or self._look_up.done():
            self._look_up = asyncio.create_task(self._look_all_up())
        # A caller who leaves must not take the answer from those who still wait.
        await asyncio.shield(self._look_up)
        return self._is_known(address)

    async def close(self) -> None:
        """Breaks off what is being looked up."""
        tasks = [*self._resolving.values(), *([] if self._look_up is None else [self._look_up])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_known(self, address: str) -> bool:
        return address in self._names or any(address in found for found in self._found.values())

    async def _look_all_up(self) -> None:
        # Unknown addresses make no storm of look-ups: they wait a moment for the next
        # one, since the replica that they name may have come after the last.
        await asyncio.sleep(self._next_look_up - time.monotonic())
        self._next_look_up = time.monotonic() + _LOOK_UP_INTERVAL_S
        await asyncio.gather(*(self._look_up_name(name) for name in self._names))

    async def _look_up_name(self, name: str) -> None:
        """Looks a name up; one that cannot be looked up now stands for what it stood for before."""
        # A silent name server holds a thread until it gives up: never two for a name.
        task = self._resolving.get(name) or asyncio.create_task(self._resolve(name))
        self._resolving[name] = task
        try:
            async with asyncio.timeout(_LOOK_UP_LIMIT_S):
                self._found[name] = await asyncio.shield(task)
        except OSError as fault:
            logger.warning("%s cannot be looked up: %s", name, fault or "no answer in time")
        if task.done():
            del self._resolving[name]
