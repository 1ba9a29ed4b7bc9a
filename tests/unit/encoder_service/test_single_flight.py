"""One run for many callers: who leaves disturbs nobody, and nobody's run is nobody's work."""

from __future__ import annotations

import asyncio

import pytest

from encoder_service.single_flight import Flight, SingleFlight
from shared.errors import UnavailableError

Flights = SingleFlight[str, None, int]


class Work:
    """Counts its runs; each waits to be told its result."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.result: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> int:
        self.started += 1
        try:
            return await asyncio.shield(self.result)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def call(flights: Flights, work: Work) -> int:
    flight: Flight[None, int] = flights.start("key", None, work)
    with flight.held():
        return await flight.result()


async def test_callers_at_once_share_one_run() -> None:
    flights, work = Flights(), Work()
    callers = [asyncio.create_task(call(flights, work)) for _ in range(10)]
    await asyncio.sleep(0)
    work.result.set_result(7)
    assert await asyncio.gather(*callers) == [7] * 10
    assert work.started == 1
    assert flights.find("key") is None


async def test_a_caller_who_leaves_does_not_disturb_the_others() -> None:
    flights, work = Flights(), Work()
    first, second = (asyncio.create_task(call(flights, work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    work.result.set_result(7)
    assert await second == 7
    assert (work.started, work.cancelled) == (1, 0)


async def test_the_run_is_cancelled_when_all_callers_have_gone() -> None:
    flights, work = Flights(), Work()
    callers = [asyncio.create_task(call(flights, work)) for _ in range(3)]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    await asyncio.sleep(0)
    assert work.cancelled == 1
    # A later caller gets a run of its own, not the one that is being cancelled.
    later = asyncio.create_task(call(flights, work))
    await asyncio.sleep(0)
    work.result.set_result(7)
    assert await later == 7


async def test_a_failed_run_fails_all_its_callers_and_is_forgotten() -> None:
    flights, work = Flights(), Work()
    callers = [asyncio.create_task(call(flights, work)) for _ in range(3)]
    await asyncio.sleep(0)
    work.result.set_exception(UnavailableError("gone"))
    for caller in callers:
        with pytest.raises(UnavailableError, match="gone"):
            await caller
    again = Work()
    again.result.set_result(7)
    assert await call(flights, again) == 7


async def test_progress_comes_before_the_result_and_failure_in_its_place() -> None:
    flights: SingleFlight[str, asyncio.Future[str], int] = SingleFlight()
    loop = asyncio.get_running_loop()
    told: asyncio.Future[str] = loop.create_future()
    work = Work()
    flight = flights.start("key", told, work)
    with flight.held():
        told.set_result("layout")
        await flight.first_of(told)
    failing = Work()
    flight = flights.start("other", loop.create_future(), failing)
    with flight.held():
        failing.result.set_exception(UnavailableError("gone"))
        with pytest.raises(UnavailableError):
            await flight.first_of(flight.progress)
