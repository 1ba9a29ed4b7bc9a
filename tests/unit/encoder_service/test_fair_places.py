"""Places go to who is due first: the small past the large, nobody passed for ever, none lost."""

from __future__ import annotations

import asyncio

import pytest

from encoder_service.fair_places import FairPlaces


class Work:
    """Work that takes places and notes who was served when."""

    def __init__(self, count: int = 1, rate: float = 1000.0) -> None:
        self.places = FairPlaces(count, rate)
        self.order: list[str] = []
        self.running = 0
        self.most_running = 0

    async def do(self, name: str, byte_count: int, seconds: float = 0.01) -> None:
        async with self.places.place(byte_count):
            self.order.append(name)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            await asyncio.sleep(seconds)
            self.running -= 1


async def started(work: Work, name: str, byte_count: int, seconds: float = 0.01) -> asyncio.Task[None]:
    task = asyncio.create_task(work.do(name, byte_count, seconds))
    await asyncio.sleep(0)
    return task


async def test_the_small_pass_the_large_that_came_before() -> None:
    work = Work()
    tasks = [await started(work, f"large {number}", 100_000) for number in range(5)]
    tasks += [await started(work, f"small {number}", 10) for number in range(3)]
    await asyncio.gather(*tasks)
    # The first had its place already.
    assert work.order == [
        "large 0",
        *(f"small {number}" for number in range(3)),
        *(f"large {number}" for number in range(1, 5)),
    ]
    assert work.most_running == 1


async def test_the_large_are_not_passed_for_ever() -> None:
    work = Work(rate=1000.0)
    tasks = [await started(work, "first", 0, 0.05), await started(work, "large", 100)]
    # Due 0.1 s after it came: what comes later than that is behind it, however small.
    while "large" not in work.order and len(tasks) < 200:
        tasks += [await started(work, "small", 0, 0.02) for _ in range(3)]
        await asyncio.sleep(0.02)
    assert "large" in work.order
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_as_many_at_once_as_there_are_places() -> None:
    work = Work(count=3)
    await asyncio.gather(*(work.do(str(number), number) for number in range(20)))
    assert work.most_running == 3 and len(work.order) == 20


@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "as it is its turn"])
async def test_who_leaves_takes_no_place_along(late: bool) -> None:
    work = Work()
    async with work.places.place(0):
        leaving, behind = await started(work, "leaving", 0), await started(work, "behind", 10)
        if not late:
            leaving.cancel()
    # Late: its turn is set, and it has not heard of it.
    leaving.cancel()
    await asyncio.wait_for(behind, 1)
    await asyncio.gather(leaving, return_exceptions=True)
    assert leaving.cancelled() and work.order == ["behind"]
    await asyncio.wait_for(work.do("next", 0), 1)


async def test_work_that_fails_gives_its_place_back() -> None:
    work = Work()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with work.places.place(1):
                raise ZeroDivisionError
    await asyncio.wait_for(work.do("next", 0), 1)
