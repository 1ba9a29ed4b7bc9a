"""Stop strings: found across pieces, never shown in part, flushed when they do not come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_service.stop_strings import StopMatch, StopStringFilter


def open_filter(*stops: str, include: bool = False) -> StopStringFilter:
    return StopStringFilter(stops, include_stop_string=include)


def test_a_stop_string_across_pieces_ends_the_text_before_it() -> None:
    stops = open_filter("END")
    assert stops.add("the E") == StopMatch("the ", None)
    assert stops.add("N") == StopMatch("", None)
    assert stops.add("D of it") == StopMatch("", "END")


def test_a_beginning_that_goes_on_otherwise_is_shown() -> None:
    stops = open_filter("END")
    assert stops.add("EN").text == ""
    assert stops.add("EMY") == StopMatch("ENEMY", None)


def test_what_was_held_back_is_flushed_at_the_end() -> None:
    stops = open_filter("END")
    assert stops.add("the EN").text == "the "
    assert stops.flush() == "EN"
    assert stops.flush() == ""


def test_the_matched_stop_string_can_be_kept() -> None:
    assert open_filter("END", include=True).add("the END.") == StopMatch("the END", "END")


def test_the_stop_string_that_is_whole_first_wins_and_the_longer_of_two_that_end_together() -> None:
    assert open_filter("abcd", "bc").add("xabcd") == StopMatch("xa", "bc")
    assert open_filter("c", "bc").add("xabcd") == StopMatch("xa", "bc")


def test_a_stop_string_before_its_time_passes_and_one_that_ends_later_counts() -> None:
    stops = open_filter("END")
    assert stops.add("END E", may_match=False) == StopMatch("END ", None)
    assert stops.add("ND", may_match=True) == StopMatch("", "END")


TEXTS = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


@given(TEXTS, STOPS, st.booleans(), st.data())
def test_pieces_give_what_single_characters_give(
    text: str, stops: list[str], include: bool, data: st.DataObject
) -> None:
    """However the text is cut, the outcome is that of one character at a time."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(pieces, stops, include) == run(list(text), stops, include) == naive(text, stops, include)


def run(pieces: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    stop_filter = open_filter(*stops, include=include)
    shown = ""
    for piece in pieces:
        match = stop_filter.add(piece)
        shown += match.text
        if match.stop_string is not None:
            return shown, match.stop_string
    return shown + stop_filter.flush(), None


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None
