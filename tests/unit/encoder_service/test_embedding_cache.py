"""The embedding cache: within its budget, the longest unused goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from encoder_service.cache import EmbeddingCache, item_byte_count
from shared.families.base import EncodedItem, MediaInfo, RawTensor


def item(byte_count: int) -> EncodedItem:
    rows = RawTensor("float32", (1, byte_count // 4), bytes(byte_count))
    return EncodedItem(MediaInfo(row_count=1), {"embeds": rows})


def test_the_longest_unused_goes_first() -> None:
    cache = EmbeddingCache(100)
    for key in ("a", "b"):
        cache.put(key, item(40))
    assert cache.get("a") is not None
    cache.put("c", item(40))
    assert cache.get("b") is None
    assert cache.get("a") is not None and cache.get("c") is not None
    assert (cache.byte_count, cache.hit_count, cache.miss_count) == (80, 3, 1)


def test_an_item_above_the_budget_is_not_kept_and_evicts_nothing() -> None:
    cache = EmbeddingCache(100)
    cache.put("a", item(40))
    cache.put("b", item(104))
    assert cache.peek("a") is not None and cache.peek("b") is None


def test_a_budget_of_nothing_keeps_nothing() -> None:
    cache = EmbeddingCache(0)
    cache.put("a", item(4))
    assert cache.get("a") is None


def test_a_second_look_is_not_counted() -> None:
    cache = EmbeddingCache(100)
    assert cache.peek("a") is None
    assert (cache.hit_count, cache.miss_count) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40)), max_size=60))
def test_the_count_is_what_is_there_and_within_the_budget(puts: list[tuple[str, int]]) -> None:
    cache = EmbeddingCache(100)
    for key, size in puts:
        cache.put(key, item(4 * size))
    held = [kept for key in "abcdef" if (kept := cache.peek(key)) is not None]
    assert cache.byte_count == sum(item_byte_count(kept) for kept in held) <= 100
