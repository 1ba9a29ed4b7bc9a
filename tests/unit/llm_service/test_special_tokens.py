"""Special tokens are found wherever they begin, and quickly, however many there are."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from llm_service.special_tokens import SpecialTokenGuard, special_token_pattern

TOKENS = st.lists(st.text("ab.", min_size=2, max_size=5), min_size=1, max_size=8)
TEXTS = st.lists(st.text("ab. ", max_size=6), max_size=5)


@given(TOKENS, st.text("ab.", max_size=40))
def test_every_place_and_the_longest_token_there(tokens: list[str], text: str) -> None:
    pattern = special_token_pattern(tokens)
    assert pattern is not None
    expected = [
        (place, place + max(map(len, found)))
        for place in range(len(text))
        if (found := [token for token in tokens if text.startswith(token, place)])
    ]
    assert [match.span(1) for match in pattern.finditer(text)] == expected


@given(TOKENS, TEXTS)
def test_no_piece_holds_a_token_however_texts_are_joined(tokens: list[str], texts: list[str]) -> None:
    guard = SpecialTokenGuard(special_token_pattern(tokens))
    safe = guard.protect_all(texts)
    for join, strip in (("", False), ("", True), (" ", False)):
        pieces = guard.split(join.join(text.strip() if strip else text for text in safe))
        if not strip:
            assert "".join(pieces) == join.join(texts)
        assert join or not [token for piece in pieces for token in tokens if token in piece]


def test_texts_without_a_token_between_them_stay_as_they_are() -> None:
    guard = SpecialTokenGuard(special_token_pattern(["<end>", "<e"]))
    for texts in ([], ["<"], ["a <", " b", "end>"], ["<", "", " x", "e>"], ["en", "d>"]):
        assert guard.protect_all(texts) == texts


def test_thousands_of_tokens_are_looked_for_at_once() -> None:
    """One after the other, this takes seven seconds for a thousand of them."""
    pattern = special_token_pattern(["[INST]", "</s>", *(f"<SPECIAL_{number}>" for number in range(6000))])
    assert pattern is not None
    started = time.perf_counter()
    assert not list(pattern.finditer("some [words] <here> " * 50_000))
    assert time.perf_counter() - started < 2


def test_tokens_of_one_character_are_left_alone() -> None:
    assert special_token_pattern(["x", ""]) is None
