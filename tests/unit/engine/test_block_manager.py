"""Blocks are handed out, shared and taken back, and each has one state at a time."""

from __future__ import annotations

import pytest

from llm_service.engine.block_manager import BlockManager

A, B, C = b"a", b"b", b"c"


def filled(pool: BlockManager, *contents: bytes) -> list[int]:
    """Allocates and registers one block for each content."""
    table = pool.allocate(len(contents))
    for block, content in zip(table, contents, strict=True):
        pool.register(block, content)
    return table


def test_blocks_for_rounds_up() -> None:
    pool = BlockManager(4, 16)
    assert [pool.blocks_for(count) for count in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_a_block_is_handed_out_once() -> None:
    pool = BlockManager(4, 1)
    first, second = pool.allocate(2), pool.allocate(2)
    assert sorted(first + second) == [0, 1, 2, 3]
    assert (pool.free_count, pool.used_count) == (0, 4)
    with pytest.raises(AssertionError):
        pool.allocate(1)


def test_released_content_is_found_and_shared() -> None:
    pool = BlockManager(4, 1)
    table = filled(pool, A, B)
    pool.release(table)
    assert pool.free_count == 4
    assert pool.find([A, B, C]) == table
    assert pool.free_among(table) == 2
    pool.hold(table)
    pool.hold(table)
    pool.check_integrity([table, table])
    pool.release(table)
    assert pool.free_count == 2, "the other holder still has them"


def test_only_a_leading_run_is_found() -> None:
    pool = BlockManager(4, 1)
    filled(pool, A, C)
    assert len(pool.find([A, B, C])) == 1
    assert pool.find([B, C]) == []


def test_empty_blocks_go_first_then_the_least_recently_released() -> None:
    pool = BlockManager(4, 1)
    old, new, plain = filled(pool, A), filled(pool, B), pool.allocate(2)
    pool.release(old)
    pool.release(new)
    pool.release(plain)
    assert sorted(pool.allocate(2)) == sorted(plain)
    assert pool.allocate(1) == old
    assert pool.find([A]) == [] and pool.find([B]) == new


def test_a_table_loses_its_end_first() -> None:
    pool = BlockManager(3, 1)
    pool.release(filled(pool, A, B, C))
    pool.allocate(1)
    assert len(pool.find([A, B, C])) == 2


def test_equal_content_is_known_by_its_first_block() -> None:
    pool = BlockManager(2, 1)
    first, second = filled(pool, A), filled(pool, A)
    assert pool.find([A]) == first
    pool.release(first)
    pool.release(second)
    pool.check_integrity([])
    assert pool.allocate(1) == second, "the unknown copy is the empty one"


def test_without_caching_nothing_is_found() -> None:
    pool = BlockManager(2, 1, caching=False)
    filled(pool, A)
    assert pool.find([A]) == []


def test_misuse_is_our_bug() -> None:
    pool = BlockManager(2, 1)
    (block,) = pool.allocate(1)
    pool.release([block])
    with pytest.raises(AssertionError):
        pool.release([block])
    with pytest.raises(AssertionError):
        pool.register(block, A)
    with pytest.raises(AssertionError):
        pool.check_integrity([[block]])
