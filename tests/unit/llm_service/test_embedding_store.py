"""The embedding store: whom it asks, what it evicts, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.embedding_push import MAX_CHUNK_BYTES
from shared.errors import InvalidRequestError, UnavailableError
from tests.unit.llm_service.store_world import ROW_BYTES, Caller, World, key_of, layout_of

A, B, C = key_of(10), key_of(11), key_of(12)
ROWS = {A: 2, B: 2, C: 2}


def caller(age: int, *keys: str) -> Caller:
    return Caller((age, 0), list(keys))


def run_to_the_end(world: World, limit: int = 5_000) -> None:
    """Lets everything happen that can, fairly: the actions in turn."""
    for turn in range(limit):
        actions = world.actions()
        if not actions:
            return
        actions[turn % len(actions)]()
        assert world.store.used_byte_count <= world.store.budget
    raise AssertionError("the world does not come to rest")


async def test_one_of_two_is_asked_and_the_other_when_that_one_leaves() -> None:
    world = World(4, ROWS)
    first, second = caller(1, A), caller(2, A)
    world.arrive(first)
    world.arrive(second)
    assert (first.asked, second.asked) == ([A], [])
    world.leave(first)
    assert second.asked == [A]


async def test_an_asker_who_leaves_while_the_rows_come_is_not_replaced_unless_they_break_off() -> None:
    world = World(4, ROWS)
    first, second = caller(1, A), caller(2, A)
    world.arrive(first)
    world.arrive(second)
    push = world.start_push(A)
    world.leave(first)
    assert second.asked == []
    world.end_push(push)
    assert second.asked == [A]


async def test_an_asker_who_delivers_nothing_is_passed_over() -> None:
    world = World(4, ROWS)
    first, second = caller(1, A), caller(2, A)
    world.arrive(first)
    world.arrive(second)
    world.now = 29
    world.store.ask_overdue(30)
    assert second.asked == []
    world.now = 31
    world.store.ask_overdue(30)
    assert second.asked == [A]
    world.now = 62
    world.store.ask_overdue(30)
    assert first.asked == [A, A]


async def test_a_known_layout_is_not_asked_for_until_the_engine_lacks_rows() -> None:
    world = World(4, ROWS)
    world.arrive(caller(1, A))
    world.start_push(A)
    run_to_the_end(world)
    late = caller(2, A)
    world.arrive(late)
    assert late.asked == [] and world.store.layout(A) == layout_of(2)[0]
    assert world.store.used_byte_count == 2 * ROW_BYTES, "the rows are still here for others"


async def test_a_push_that_nobody_wants_is_drained() -> None:
    world = World(4, ROWS)
    push = world.start_push(A)
    assert push.granted.result() is False
    world.end_push(push)
    assert world.store.used_byte_count == 0


async def test_a_second_push_of_a_key_is_drained_while_the_first_one_lives() -> None:
    world = World(4, ROWS)
    world.arrive(caller(1, A))
    first, second = world.start_push(A), world.start_push(A)
    assert (first.granted.result(), second.granted.result()) == (True, False)
    world.end_push(second)
    world.serve(first)
    world.serve(first)
    assert first.complete


async def test_after_a_push_broke_off_another_may_deliver_the_item() -> None:
    world = World(4, ROWS)
    one = caller(1, A)
    world.arrive(one)
    world.serve(push := world.start_push(A))
    world.end_push(push)
    assert one.asked == [A, A], "asked again at once"
    again = world.start_push(A)
    assert not again.granted.done(), "the engine has not let go of the partial rows yet"
    run_to_the_end(world)
    assert one.done and not world.callers


async def test_rows_of_a_caller_who_left_are_discarded_in_mid_push() -> None:
    world = World(4, ROWS)
    one = caller(1, A)
    world.arrive(one)
    world.serve(push := world.start_push(A))
    world.leave(one)
    run_to_the_end(world)
    assert push not in world.sent_rows and world.store.used_byte_count == 0


async def test_a_header_that_contradicts_the_known_layout_is_refused_and_the_layout_learnt_anew() -> None:
    world = World(8, ROWS)
    one = caller(1, A)
    world.arrive(one)
    push = world.start_push(A)
    with pytest.raises(UnavailableError, match="contradicts"):
        world.store.offer(A, *layout_of(3))
    world.end_push(push)
    world.leave(one)
    run_to_the_end(world)
    assert world.store.layout(A) is None


async def test_a_push_that_nobody_asked_for_leaves_no_layout_behind() -> None:
    world = World(8, ROWS)
    push = world.store.offer(A, *layout_of(3))
    assert await push.granted is False
    assert world.store.layout(A) is None


async def test_an_item_larger_than_the_budget_is_refused_and_fails_who_wants_it() -> None:
    world = World(4, ROWS)
    one = caller(1, A)
    world.arrive(one)
    with pytest.raises(InvalidRequestError):
        world.store.offer(A, *layout_of(5))
    assert isinstance(one.failure, InvalidRequestError)


async def test_the_oldest_callers_push_gets_the_room() -> None:
    world = World(2, ROWS)
    for age, key in enumerate((A, B, C)):
        world.arrive(caller(age, key))
    first = world.start_push(A)
    third, second = world.start_push(C), world.start_push(B)
    assert first.granted.done() and not second.granted.done() and not third.granted.done()
    world.leave(world.callers[0])
    while not (second.granted.done() or third.granted.done()):
        world.actions()[0]()
    assert second.granted.result() is True and not third.granted.done()


async def test_unwanted_rows_go_first_then_used_ones_then_those_of_younger_callers() -> None:
    world = World(6, {**ROWS, key_of(13): 2, key_of(14): 2, key_of(15): 2})
    unwanted, used, young, old = caller(1, A), caller(2, B), caller(9, C), caller(3, key_of(13))
    for one in (unwanted, used, young):
        world.arrive(one)
        deliver(world, one.keys[0])
    world.store.used(used, B, None)
    world.leave(unwanted)
    for number, victim in ((13, A), (14, B), (15, C)):
        old = caller(3, key_of(number))
        world.arrive(old)
        world.start_push(key_of(number))
        run_engine(world)
        assert victim not in world.opened
        deliver(world, key_of(number), push=False)


async def test_a_younger_caller_cannot_evict_what_an_older_one_still_needs() -> None:
    world = World(2, ROWS)
    old, young = caller(1, A), caller(2, B)
    world.arrive(old)
    deliver(world, A)
    world.arrive(young)
    push = world.start_push(B)
    run_engine(world)
    assert A in world.opened and not push.granted.done()
    world.store.used(old, A, None)
    run_engine(world)
    assert A not in world.opened and push.granted.result() is True


async def test_a_callers_later_item_gives_way_to_its_earlier_one() -> None:
    world = World(2, ROWS)
    world.arrive(caller(1, A, B))
    deliver(world, B)
    push = world.start_push(A)
    run_engine(world)
    assert push.granted.result() is True and B not in world.opened


@pytest.mark.parametrize(
    ("tensor_index", "byte_offset", "byte_count"),
    [(1, 0, 4), (-1, 0, 4), (0, 4, 4), (0, 0, 2 * ROW_BYTES + 1), (0, 0, MAX_CHUNK_BYTES + 1)],
)
async def test_a_chunk_that_does_not_continue_its_tensor_is_refused(
    tensor_index: int, byte_offset: int, byte_count: int
) -> None:
    world = World(4, ROWS)
    world.arrive(caller(1, A))
    push = world.start_push(A)
    with pytest.raises(InvalidRequestError):
        world.store.write(push, tensor_index, byte_offset, b"x" * byte_count)


async def test_a_stream_that_ends_early_is_refused() -> None:
    world = World(4, ROWS)
    world.arrive(caller(1, A))
    world.store.write(push := world.start_push(A), 0, 0, b"x" * ROW_BYTES)
    with pytest.raises(InvalidRequestError, match="ended after"):
        world.store.finish(push)


async def test_whole_rows_survive_the_engine_and_are_announced_to_the_next_one() -> None:
    world = World(4, ROWS)
    world.arrive(caller(1, A))
    deliver(world, A)
    world.lose_engine()
    run_engine(world)
    assert world.opened[A][1] == 2
    again = caller(2, A)
    world.arrive(again)
    run_to_the_end(world)
    assert again.done and again.asked == []


def deliver(world: World, key: str, *, push: bool = True) -> None:
    """Has an item delivered to its end."""
    pushes = [world.start_push(key)] if push else [p for p in world.sent_rows if p.key == key]
    for one in pushes:
        while one in world.sent_rows:
            world.serve(one)
    run_engine(world)


def run_engine(world: World) -> None:
    """Lets all messages between store and engine arrive."""
    while world._to_engine or world._to_front:
        if world._to_engine:
            world._engine_hears(world._to_engine.popleft())
        else:
            world._to_front.popleft()()


KEYS = [key_of(number) for number in range(6)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_happens_everybody_is_served_in_the_end(data: st.DataObject) -> None:
    """Many callers of several items each, more than the budget holds; pushes break off,
    callers leave, the engine dies, and everything comes in any order."""

    async def live() -> None:
        budget = data.draw(st.integers(3, 6), label="budget")
        rows = {key: data.draw(st.integers(1, 3), label="rows") for key in KEYS}
        world = World(budget, rows)
        prompts = data.draw(st.lists(st.lists(st.sampled_from(KEYS), min_size=1, max_size=5), max_size=5))
        waiting = [Caller((age, 0), keys) for age, keys in enumerate(prompts)]
        for _ in range(data.draw(st.integers(0, 120), label="steps")):
            disturb(world, waiting, data)
            assert world.store.used_byte_count <= world.store.budget
        for one in waiting:
            world.arrive(one)
        run_to_the_end(world)
        assert not world.callers, "somebody waits for ever"
        assert not world.sent_rows
        check_books(world)

    run(live())


def disturb(world: World, waiting: list[Caller], data: st.DataObject) -> None:
    """Lets one thing happen: mostly an ordinary one."""
    kind = data.draw(st.sampled_from("aaaaaaaannnlbep"))
    if kind == "n" and waiting:
        world.arrive(waiting.pop(0))
    elif kind == "l" and world.callers:
        world.leave(data.draw(st.sampled_from(world.callers)))
    elif kind == "b" and world.sent_rows:
        world.end_push(data.draw(st.sampled_from(list(world.sent_rows))))
    elif kind == "p" and (prefilling := [one for one in world.callers if one.in_engine]):
        world.preempt(data.draw(st.sampled_from(prefilling)))
    elif kind == "e" and data.draw(st.integers(0, 9)) == 0:
        world.lose_engine()
    elif actions := world.actions():
        data.draw(st.sampled_from(actions))()


def check_books(world: World) -> None:
    """What is left are whole items that nobody wants, and nothing else."""
    held = 0
    for key, (tensor, row_count) in world.opened.items():
        assert row_count == tensor.shape[0], f"{key} is in part"
        held += row_count * ROW_BYTES
    assert world.store.used_byte_count == held


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)
