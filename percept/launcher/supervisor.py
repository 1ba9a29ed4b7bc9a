"""Keeps the planned services running: readiness, restarts, an orderly end.

Knows when a service counts as ready, as crashed and as dead for good. Does not
know how its news is shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from percept.commands.health import check_gateway
from percept.launcher.plan import Plan, PlannedService
from percept.launcher.process import ServiceProcess, describe_status
from percept.services import ENCODER, GATEWAY, LLM
from shared.rpc.server import wait_until_serving

MAX_RESTARTS = 5
"""Restarts within `RESTART_WINDOW_S` after which a service is dead for good."""

RESTART_WINDOW_S = 120.0
FIRST_BACK_OFF_S = 0.5
LONGEST_BACK_OFF_S = 8.0

SPARE_S = 5.0
"""Seconds beyond a service's own grace after which it is killed."""


class ServiceDiedError(Exception):
    """A service is dead for good. `str(error)` says which and why, `tail` its last lines."""

    def __init__(self, reason: str, tail: list[str]) -> None:
        super().__init__(reason)
        self.tail = tail


class Audience(Protocol):
    """Who hears what happens."""

    def line(self, service: str, text: str) -> None:
        """A service wrote a line."""

    def ready(self, service: str) -> None:
        """A service became ready."""

    def crashed(self, service: str, reason: str, wait_s: float) -> None:
        """A service ended by itself and starts again after `wait_s` seconds."""


class RestartBudget:
    """Counts crashes: how long to wait before the next start, or that it is enough."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._crashes: deque[float] = deque()

    def next_wait_s(self) -> float | None:
        """Notes a crash. Returns seconds to wait before the restart; None: give up."""
        now = self._clock()
        while self._crashes and now - self._crashes[0] > RESTART_WINDOW_S:
            self._crashes.popleft()
        self._crashes.append(now)
        if len(self._crashes) > MAX_RESTARTS:
            return None
        return min(LONGEST_BACK_OFF_S, FIRST_BACK_OFF_S * 2.0 ** (len(self._crashes) - 1))


class Supervisor:
    """Runs one plan from its start to its end."""

    def __init__(self, plan: Plan, audience: Audience, start_timeout_s: float) -> None:
        self._plan = plan
        self._audience = audience
        self._start_timeout_s = start_timeout_s
        self._running: dict[str, ServiceProcess] = {}
        self._ready = {service.name: asyncio.Event() for service in plan.services}
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Starts everything and waits until all of it is ready.

        Raises:
            ServiceDiedError: one ended before it was ready, or the time was up.
        """
        self._keepers = [asyncio.create_task(self._keep(service)) for service in self._plan.services]
        all_ready = asyncio.create_task(self._until_all_ready())
        try:
            await asyncio.wait(
                [all_ready, *self._keepers],
                timeout=self._start_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            self._raise_if_dead()
            if not all_ready.done():
                late = [name for name, event in self._ready.items() if not event.is_set()]
                reason = f"{', '.join(late)} not ready after {self._start_timeout_s:g} s (--start-timeout-s)"
                raise ServiceDiedError(reason, self._tail_of(late[0]))
        finally:
            all_ready.cancel()

    async def watch(self) -> None:
        """Waits until a service is dead for good.

        Raises:
            ServiceDiedError: always; cancel the wait to end it otherwise.
        """
        await asyncio.wait(self._keepers, return_when=asyncio.FIRST_COMPLETED)
        self._raise_if_dead()

    async def stop(self) -> None:
        """Stops everything: the gateway first, so that its requests can finish."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        gateways = [name for name in self._running if name == GATEWAY.name]
        await self._stop_each(gateways)
        await self._stop_each([name for name in self._running if name not in gateways])
        self._running.clear()

    async def _stop_each(self, names: list[str]) -> None:
        grace_s = {service.name: _grace_s(service) for service in self._plan.services}
        await asyncio.gather(*(self._running[name].stop(grace_s[name]) for name in names))

    def kill(self) -> None:
        """Ends everything at once."""
        for process in self._running.values():
            process.kill()

    async def _until_all_ready(self) -> None:
        for event in self._ready.values():
            await event.wait()

    async def _keep(self, service: PlannedService) -> None:
        """Starts a service again and again, until it is dead for good."""
        budget = RestartBudget()
        while True:
            process = await ServiceProcess.start(
                service, lambda line: self._audience.line(service.name, line)
            )
            self._running[service.name] = process
            status = await self._watch_one(service, process)
            reason = f"{service.name} ended: {describe_status(status)}"
            # What is left of the group holds memory, and perhaps the port.
            process.kill()
            if not self._ready[service.name].is_set():
                raise ServiceDiedError(f"{reason}, before it was ready", process.tail)
            wait_s = budget.next_wait_s()
            if wait_s is None:
                raise ServiceDiedError(f"{reason}, after {MAX_RESTARTS} restarts", process.tail)
            self._audience.crashed(service.name, reason, wait_s)
            await asyncio.sleep(wait_s)

    async def _watch_one(self, service: PlannedService, process: ServiceProcess) -> int:
        """Announces the service when it is ready; returns its exit status."""
        becoming_ready = asyncio.create_task(self._until_ready(service))
        try:
            return await process.wait()
        finally:
            becoming_ready.cancel()

    async def _until_ready(self, service: PlannedService) -> None:
        if service.entry is GATEWAY:
            await self._until_gateway_ready()
        else:
            await wait_until_serving(service.address, self._start_timeout_s)
        self._ready[service.name].set()
        self._audience.ready(service.name)

    async def _until_gateway_ready(self) -> None:
        """Waits until the gateway has found every service: a request now is answered."""
        import httpx

        while True:
            with contextlib.suppress(httpx.HTTPError):
                health = await check_gateway(self._plan.url, timeout_s=2.0)
                if all(health[kind]["serving"] == self._count(kind) for kind in (ENCODER.name, LLM.name)):
                    return
            await asyncio.sleep(0.1)

    def _count(self, kind: str) -> int:
        return sum(service.entry.name == kind for service in self._plan.services)

    def _raise_if_dead(self) -> None:
        for keeper in self._keepers:
            if keeper.done():
                keeper.result()

    def _tail_of(self, name: str) -> list[str]:
        process = self._running.get(name)
        return process.tail if process is not None else []


def _grace_s(service: PlannedService) -> float:
    """Seconds that a service gets to drain, by its own settings."""
    return float(getattr(service.settings, "drain_grace_s", 30.0)) + SPARE_S
