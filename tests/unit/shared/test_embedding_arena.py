"""The arena: regions never overlap, freed memory goes back, the engine cannot write."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.embedding_arena import ALIGNMENT, EmbeddingArena


@pytest.fixture
def arena() -> Iterator[EmbeddingArena]:
    arena = EmbeddingArena.create(16 * ALIGNMENT)
    yield arena
    arena.close()


def resident_byte_count(arena: EmbeddingArena) -> int:
    return os.fstat(arena.fd).st_blocks * 512


def test_a_reader_sees_what_the_owner_wrote_and_cannot_write(arena: EmbeddingArena) -> None:
    offset = arena.allocate(5)
    assert offset is not None
    arena.view(offset, 5)[:] = b"hello"
    reader = EmbeddingArena.open(os.dup(arena.fd), arena.byte_count)
    view = reader.view(offset, 5)
    assert bytes(view) == b"hello"
    with pytest.raises(TypeError):
        view[:] = b"other"
    view.release()
    reader.close()


def test_a_freed_region_gives_its_memory_back_at_once(arena: EmbeddingArena) -> None:
    offset = arena.allocate(8 * ALIGNMENT)
    assert offset is not None
    arena.view(offset, 8 * ALIGNMENT)[:] = b"x" * (8 * ALIGNMENT)
    assert resident_byte_count(arena) == 8 * ALIGNMENT
    arena.free(offset)
    assert resident_byte_count(arena) == 0


def test_the_beginning_may_keep_its_memory_for_the_next_region() -> None:
    arena = EmbeddingArena.create(16 * ALIGNMENT, kept_byte_count=3 * ALIGNMENT)
    offset = arena.allocate(8 * ALIGNMENT)
    assert offset == 0
    arena.view(0, 8 * ALIGNMENT)[:] = b"x" * (8 * ALIGNMENT)
    arena.free(0)
    assert (resident_byte_count(arena), arena.used_byte_count) == (3 * ALIGNMENT, 0)
    assert arena.allocate(ALIGNMENT) == 0
    arena.close()


def test_a_full_arena_says_none_and_has_room_again_after_a_free(arena: EmbeddingArena) -> None:
    offsets = [arena.allocate(4 * ALIGNMENT) for _ in range(4)]
    assert arena.allocate(1) is None
    assert offsets[1] is not None and offsets[2] is not None
    arena.free(offsets[1])
    arena.free(offsets[2])
    assert arena.allocate(8 * ALIGNMENT) == offsets[1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5 * ALIGNMENT)), max_size=40))
def test_regions_never_overlap_and_an_emptied_arena_is_one_gap(steps: list[tuple[bool, int]]) -> None:
    arena = EmbeddingArena.create(16 * ALIGNMENT)
    regions: dict[int, int] = {}
    for takes, size in steps:
        if takes or not regions:
            offset = arena.allocate(size)
            if offset is None:
                continue
            assert all(offset + size <= o or o + s <= offset for o, s in regions.items())
            regions[offset] = size
        else:
            offset = next(iter(regions))
            del regions[offset]
            arena.free(offset)
    for offset in regions:
        arena.free(offset)
    assert arena.used_byte_count == 0
    assert arena.allocate(16 * ALIGNMENT) == 0
    arena.close()
