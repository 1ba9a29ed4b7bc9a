"""The batcher: budget, order, company, and nothing for callers who have gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import chain

import numpy as np
import pytest

from encoder_service.batcher import Batcher, Encoded
from shared.families.base import EncodedItem, Features, MediaInfo, RawTensor
from tests.unit.encoder_service.waiting import until


class Tower:
    """Notes its batches by their items' numbers; runs when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.poison: int | None = None

    async def run(self, batch: Sequence[Features]) -> list[EncodedItem]:
        numbers = [int(features.arrays["number"]) for features in batch]
        self.batches.append(numbers)
        await self.free.wait()
        if self.poison in numbers:
            raise RuntimeError("the tower fell")
        return [
            EncodedItem(
                features.info, {"rows": RawTensor("int64", (1,), features.arrays["number"].tobytes())}
            )
            for features in batch
        ]


def features(number: int, token_cost: int = 10) -> Features:
    return Features(MediaInfo(row_count=1), {"number": np.array(number, np.int64)}, token_cost)


@pytest.fixture
async def tower() -> Tower:
    return Tower()


@pytest.fixture
async def make(tower: Tower) -> AsyncIterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def make(
        max_wait_s: float = 0.0,
        expecting: bool = False,
        earliest: Callable[[], int | None] | None = None,
    ) -> Batcher:
        """`expecting`: items of later turns than all others are on their way."""
        later = 1_000_000 if expecting else None
        batcher = Batcher(tower.run, 30, max_wait_s, earliest or (lambda: later))
        batcher.start()
        made.append(batcher)
        return batcher

    yield make
    tower.free.set()
    for batcher in made:
        await batcher.close()


async def encode(batcher: Batcher, number: int, token_cost: int = 10) -> Encoded:
    (answer,) = await batcher.submit([features(number, token_cost)], turn=number)
    return await answer


async def encode_parts(
    batcher: Batcher, numbers: Sequence[int], turn: int, token_cost: int = 30
) -> list[int]:
    """An item whose parts have these numbers."""
    answers = await batcher.submit([features(number, token_cost) for number in numbers], turn)
    return [number_of(await answer) for answer in answers]


def number_of(encoded: Encoded) -> int:
    return int(np.frombuffer(encoded.item.tensors["rows"].data, np.int64)[0])


async def test_everyone_gets_their_own_rows(make: Callable[..., Batcher], tower: Tower) -> None:
    batcher = make()
    results = await asyncio.gather(*(encode(batcher, number) for number in range(50)))
    assert [number_of(result) for result in results] == list(range(50))
    assert sorted(chain(*tower.batches)) == list(range(50))
    assert (batcher.item_count, batcher.run_count) == (50, len(tower.batches))


async def test_what_arrives_during_a_run_makes_up_the_next_within_the_budget(
    make: Callable[..., Batcher], tower: Tower
) -> None:
    batcher = make()
    tower.free.clear()
    tasks = [asyncio.create_task(encode(batcher, 0))]
    await asyncio.sleep(0.01)
    tasks += [asyncio.create_task(encode(batcher, number)) for number in range(1, 6)]
    tasks.append(asyncio.create_task(encode(batcher, 6, token_cost=1000)))
    await asyncio.sleep(0.01)
    tower.free.set()
    await asyncio.gather(*tasks)
    assert tower.batches == [[0], [1, 2, 3], [4, 5], [6]]


async def test_items_whose_callers_left_are_not_run(make: Callable[..., Batcher], tower: Tower) -> None:
    batcher = make()
    tower.free.clear()
    tasks = [asyncio.create_task(encode(batcher, number)) for number in (0, 1, 2, 3)]
    await asyncio.sleep(0.01)
    late = [asyncio.create_task(encode(batcher, number)) for number in (4, 5)]
    await asyncio.sleep(0.01)
    late[0].cancel()
    await asyncio.wait([late[0]])
    tower.free.set()
    await asyncio.gather(*tasks, late[1])
    assert 4 not in chain(*tower.batches)


async def test_the_queue_is_bounded_and_moves_on_when_all_in_it_have_gone(
    make: Callable[..., Batcher], tower: Tower
) -> None:
    batcher = make()
    tower.free.clear()
    running = asyncio.create_task(encode(batcher, 0, token_cost=30))
    await asyncio.sleep(0.01)
    queued = [
        answer
        for number in range(1, 5)
        for answer in await batcher.submit([features(number, 30)], turn=number)
    ]
    waiting = asyncio.create_task(encode(batcher, 5))
    await asyncio.sleep(0.01)
    assert not waiting.done() and tower.batches == [[0]]
    for answer in queued:
        answer.cancel()
    tower.free.set()
    assert number_of(await waiting) == 5
    await running
    assert tower.batches == [[0], [5]]


async def test_a_poisonous_item_fails_alone(make: Callable[..., Batcher], tower: Tower) -> None:
    batcher = make()
    tower.poison = 2
    tower.free.clear()
    tasks = [asyncio.create_task(encode(batcher, number)) for number in range(4)]
    await asyncio.sleep(0.01)
    tower.free.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], RuntimeError)
    assert [number_of(result) for result in results if isinstance(result, Encoded)] == [0, 1, 3]


async def test_an_idle_tower_waits_only_for_company_that_may_come(
    make: Callable[..., Batcher], tower: Tower
) -> None:
    expecting, alone = make(0.2, True), make(0.2, False)
    first = asyncio.create_task(encode(expecting, 0))
    await asyncio.sleep(0.05)
    assert tower.batches == []
    await asyncio.gather(first, encode(expecting, 1), encode(expecting, 2))
    assert tower.batches == [[0, 1, 2]]
    async with asyncio.timeout(0.15):
        await encode(alone, 3)


async def test_items_run_by_their_turns_not_by_their_arrival(
    make: Callable[..., Batcher], tower: Tower
) -> None:
    batcher = make()
    tower.free.clear()
    tasks = [asyncio.create_task(encode(batcher, 0, 30))]
    await asyncio.sleep(0.01)
    for number in (3, 2, 1):
        tasks.append(asyncio.create_task(encode(batcher, number, 100)))
        await asyncio.sleep(0.01)
    tower.free.set()
    await asyncio.gather(*tasks)
    assert tower.batches == [[0], [1], [2], [3]]


async def test_a_full_batch_waits_for_the_item_whose_turn_is_earlier(
    make: Callable[..., Batcher], tower: Tower
) -> None:
    decoding = {1}
    batcher = make(5.0, earliest=lambda: min(decoding, default=None))
    second = asyncio.create_task(encode(batcher, 2, 30))
    await asyncio.sleep(0.05)
    assert tower.batches == []
    decoding.clear()
    await asyncio.gather(second, encode(batcher, 1, 30))
    assert tower.batches == [[1], [2]]


async def test_nobody_waits_for_items_of_later_turns_with_a_full_batch(
    make: Callable[..., Batcher], tower: Tower
) -> None:
    batcher = make(5.0, expecting=True)
    async with asyncio.timeout(1.0):
        await encode(batcher, 1, 30)
    assert tower.batches == [[1]]


async def test_parts_run_in_order_and_no_two_of_them_at_once(
    make: Callable[..., Batcher], tower: Tower
) -> None:
    batcher = make()
    assert await encode_parts(batcher, range(5), turn=0, token_cost=10) == list(range(5))
    assert tower.batches == [[0], [1], [2], [3], [4]]
    assert (batcher.item_count, batcher.run_count) == (1, 5)


async def test_a_long_item_holds_up_those_behind_it_by_one_part(
    make: Callable[..., Batcher], tower: Tower
) -> None:
    batcher = make()
    tower.free.clear()
    long = asyncio.create_task(encode_parts(batcher, range(100, 105), turn=0))
    await until(lambda: tower.batches == [[100]])
    short = [asyncio.create_task(encode(batcher, number, token_cost=30)) for number in (1, 2)]
    await asyncio.sleep(0.01)
    tower.free.set()
    await asyncio.gather(long, *short)
    # The second part waits in the queue already, the third goes behind both.
    assert tower.batches == [[100], [101], [1], [2], [102], [103], [104]]


async def test_a_long_item_that_comes_late_is_not_ahead_for_all_its_parts(
    make: Callable[..., Batcher], tower: Tower
) -> None:
    """Its turn is early, as it was long in decoding; that counts for its first part."""
    batcher = make()
    tower.free.clear()
    first = asyncio.create_task(encode(batcher, 7, token_cost=30))
    await until(lambda: tower.batches == [[7]])
    short = [asyncio.create_task(encode(batcher, number, token_cost=30)) for number in (8, 9)]
    await asyncio.sleep(0.01)
    long = asyncio.create_task(encode_parts(batcher, range(100, 103), turn=0))
    await asyncio.sleep(0.01)
    tower.free.set()
    await asyncio.gather(first, long, *short)
    assert tower.batches == [[7], [100], [8], [9], [101], [102]]


async def test_two_long_items_share_the_tower(make: Callable[..., Batcher], tower: Tower) -> None:
    batcher = make()
    tower.free.clear()
    first = asyncio.create_task(encode_parts(batcher, (10, 11, 12), turn=0, token_cost=15))
    await until(lambda: tower.batches == [[10]])
    second = asyncio.create_task(encode_parts(batcher, (20, 21, 22), turn=1, token_cost=15))
    await asyncio.sleep(0.01)
    tower.free.set()
    assert await asyncio.gather(first, second) == [[10, 11, 12], [20, 21, 22]]
    assert tower.batches == [[10], [11, 20], [12, 21], [22]]


async def test_parts_that_nobody_waits_for_are_dropped(make: Callable[..., Batcher], tower: Tower) -> None:
    batcher = make()
    tower.free.clear()
    answers = await batcher.submit([features(number, 30) for number in range(5)], turn=0)
    await until(lambda: tower.batches == [[0]])
    for answer in answers:
        answer.cancel()
    tower.free.set()
    await encode(batcher, 9)
    assert tower.batches == [[0], [9]]
    assert batcher.item_count == 1


async def test_the_queue_counts_the_next_part_of_an_item(make: Callable[..., Batcher], tower: Tower) -> None:
    """An item of more tokens than the queue may hold goes in, and others beside it."""
    batcher = make()
    tower.free.clear()
    long = asyncio.create_task(encode_parts(batcher, range(100, 120), turn=0))
    await until(lambda: tower.batches == [[100]])
    short = [asyncio.create_task(encode(batcher, number, token_cost=30)) for number in (1, 2, 3)]
    await asyncio.sleep(0.01)
    tower.free.set()
    await asyncio.gather(long, *short)
    assert tower.batches[:6] == [[100], [101], [1], [2], [3], [102]]


async def test_a_part_that_fails_leaves_other_items_whole(make: Callable[..., Batcher], tower: Tower) -> None:
    batcher = make()
    tower.poison = 101
    answers = await batcher.submit([features(number) for number in (100, 101, 102)], turn=0)
    other = asyncio.create_task(encode(batcher, 1))
    assert number_of(await answers[0]) == 100
    with pytest.raises(RuntimeError, match="fell"):
        await answers[1]
    assert number_of(await other) == 1
    assert answers[2].cancelled()
    assert 102 not in chain(*tower.batches)
