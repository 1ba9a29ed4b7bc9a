"""Keys are stable, of one form, and differ when anything differs."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from shared.content_key import content_key, is_key

ITEMS = st.tuples(st.integers(0, 9), st.integers(0, 9), st.text(max_size=6), st.binary(max_size=6))


@given(ITEMS)
def test_a_key_is_64_hexadecimal_digits(item: tuple[int, int, str, bytes]) -> None:
    assert is_key(content_key(*item))
    assert content_key(*item) == content_key(*item)


@given(ITEMS, ITEMS)
def test_different_items_have_different_keys(
    one: tuple[int, int, str, bytes], other: tuple[int, int, str, bytes]
) -> None:
    assume(one != other)
    assert content_key(*one) != content_key(*other)


def test_bytes_do_not_move_between_settings_and_payload() -> None:
    assert content_key(1, 1, "ab", b"c") != content_key(1, 1, "a", b"bc")


def test_a_key_is_part_of_the_contract() -> None:
    expected = "5dea3665"
    assert content_key(1, 1, "", b"percept")[:8] == expected


def test_what_is_no_key() -> None:
    key = content_key(1, 1, "", b"")
    assert not any(
        is_key(text) for text in ("", key[:-1], key + "0", key.upper().replace("0", "G"), "z" * 64)
    )
