"""Batches keep their order and their bound, and one failure is one failure."""

from __future__ import annotations

import asyncio
import random

import pytest

from percept.client.batch import run_batch
from shared.errors import BadMediaError, PerceptError


async def test_results_are_in_order_within_the_bound() -> None:
    running = most = 0

    async def work(index: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(random.random() / 100)
        running -= 1
        return index

    results = await run_batch(50, work, concurrency=7, title=None, return_errors=False)
    assert results == list(range(50)) and most == 7


async def test_the_first_failure_ends_all() -> None:
    ended: list[int] = []

    async def work(index: int) -> int:
        if index == 2:
            raise BadMediaError("two")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(index)
        return index

    with pytest.raises(BadMediaError, match="two"):
        await run_batch(5, work, concurrency=3, title=None, return_errors=False)
    assert sorted(ended) == [0, 1]


async def test_failures_take_their_places() -> None:
    async def work(index: int) -> int:
        if index % 2:
            raise BadMediaError(str(index))
        return index

    results = await run_batch(6, work, concurrency=2, title=None, return_errors=True)
    assert [str(result) for result in results] == list("012345")
    assert [isinstance(result, PerceptError) for result in results] == [False, True] * 3


async def test_bugs_are_not_taken_for_failures() -> None:
    async def work(index: int) -> int:
        raise KeyError(index)

    with pytest.raises(KeyError):
        await run_batch(3, work, concurrency=2, title=None, return_errors=True)


async def test_nothing_to_do() -> None:
    async def work(index: int) -> int:
        raise AssertionError

    assert await run_batch(0, work, concurrency=3, title="nothing", return_errors=False) == []
