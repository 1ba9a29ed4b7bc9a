"""A sequence knows its positions, its ceilings and its end."""

from __future__ import annotations

import numpy as np
import pytest

from llm_service.engine.messages import AddSequence, SamplingSettings, SpanMessage, StoppingSettings
from llm_service.engine.sequence import Sequence
from shared.families.token_rules import TokenRules

A, B = "a" * 64, "b" * 64


def make(
    length: int = 20,
    spans: list[SpanMessage] | None = None,
    stopping: StoppingSettings | None = None,
    axes: int = 1,
    sampling: SamplingSettings | None = None,
) -> Sequence:
    tokens = np.arange(length, dtype="<i4")
    positions = np.stack([tokens * (axis + 1) for axis in range(axes)]).astype("<i4")
    return Sequence(
        AddSequence(
            sequence_id=1,
            token_ids=tokens.tobytes(),
            positions=positions.tobytes(),
            axes=axes,
            next_position=100,
            spans=spans or [],
            sampling=sampling or SamplingSettings(),
            stopping=stopping or StoppingSettings(4),
            arrival=0.0,
        )
    )


def test_positions_continue_after_the_prompt() -> None:
    sequence = make(length=4, axes=3)
    sequence.token_ids += [50, 51, 52]
    assert sequence.positions_of(1, 2).tolist() == [[1, 2], [2, 4], [3, 6]]
    assert sequence.positions_of(3, 3).tolist() == [[3, 100, 101], [6, 100, 101], [9, 100, 101]]
    assert sequence.positions_of(5, 2).tolist() == [[101, 102]] * 3


def test_output_is_what_follows_the_prompt() -> None:
    sequence = make(length=3)
    assert (sequence.token_ids, sequence.output_count) == (sequence.token_ids[: sequence.prompt_length], 0)
    sequence.token_ids += [7, 8]
    assert (sequence.token_ids[3:], sequence.output_count, sequence.prompt_length) == ([7, 8], 2, 3)


@pytest.mark.parametrize(
    ("ready", "expected"),
    [
        ({}, 2),
        ({A: 3}, 5),
        ({A: 5}, 10),
        ({B: 4}, 2),
        ({A: 5, B: 4}, 20),
        ({A: 9, B: 3}, 10),
    ],
)
def test_rows_that_lack_are_a_ceiling(ready: dict[str, int], expected: int) -> None:
    spans = [SpanMessage(A, 2, 5), SpanMessage(B, 10, 4, splittable=False)]
    assert make(spans=spans).ceiling(lambda key: ready.get(key, 0)) == expected


def test_a_span_waits_for_its_own_rows_of_an_item() -> None:
    spans = [SpanMessage(A, 2, 3), SpanMessage(A, 8, 3, first_row=3)]
    assert make(spans=spans).ceiling(lambda key: 4) == 9


def test_spans_behind_need_no_rows() -> None:
    sequence = make(spans=[SpanMessage(A, 2, 5), SpanMessage(B, 10, 4)])
    assert sequence.ceiling(lambda key: 0, start=7) == 10
    assert sequence.ceiling(lambda key: 0, start=14) == 20
    assert sequence.keys_beyond(6) == [A, B] and sequence.keys_beyond(7) == [B]
    assert sequence.keys_beyond(14) == []


def test_no_chunk_cuts_an_unsplittable_span() -> None:
    sequence = make(spans=[SpanMessage(A, 2, 5, splittable=False), SpanMessage(B, 10, 4)])
    assert [sequence.clip(0, end) for end in (1, 2, 3, 6, 7, 12)] == [1, 2, 2, 2, 7, 12]
    assert sequence.clip(2, 5) == 2, "nothing of it at all"


def test_no_chunk_cuts_a_span_from_its_tail() -> None:
    sequence = make(spans=[SpanMessage(A, 0, 5, splittable=False, tail=3), SpanMessage(B, 10, 4)])
    assert [sequence.clip(0, end) for end in (1, 5, 7, 8, 9, 12)] == [0, 0, 0, 8, 9, 12]
    assert sequence.item_rows_between(0, 8) == 5, "the tail is no row of an item"
    assert sequence.ceiling(lambda key: 4) == 0 and sequence.ceiling({A: 5, B: 0}.__getitem__) == 10


@pytest.mark.parametrize(
    ("output", "expected"),
    [([5], None), ([5, 9], "stop"), ([9], None), ([5, 6, 7, 8], "length"), ([5, 6, 7, 9], "stop")],
)
def test_the_end(output: list[int], expected: str | None) -> None:
    stopping = StoppingSettings(max_token_count=4, min_token_count=1, stop_token_ids=[9])
    sequence = make(length=3, stopping=stopping)
    sequence.token_ids += output
    assert sequence.finish_reason(max_model_len=100) == expected


def test_an_end_that_the_rules_choose_is_no_stop() -> None:
    stopping = StoppingSettings(max_token_count=2, stop_token_ids=[9])
    for rules, expected in ((TokenRules(last_id=9), "length"), (TokenRules(), "stop")):
        sequence = make(length=3, stopping=stopping, sampling=SamplingSettings(rules=rules))
        sequence.token_ids += [5, 9]
        assert sequence.finish_reason(max_model_len=100) == expected
    sequence = make(length=3, stopping=stopping, sampling=SamplingSettings(rules=TokenRules(last_id=9)))
    sequence.token_ids += [9]
    assert sequence.finish_reason(max_model_len=100) == "stop"


def test_the_context_ends_a_sequence() -> None:
    sequence = make(length=3)
    sequence.token_ids += [1, 2]
    assert sequence.finish_reason(max_model_len=5) == "length"
    assert sequence.finish_reason(max_model_len=6) is None


def test_stop_tokens_are_masked_until_the_minimum() -> None:
    sequence = make(stopping=StoppingSettings(9, min_token_count=1, stop_token_ids=[3, 4]))
    assert sequence.masked_token_ids == [3, 4]
    sequence.token_ids.append(5)
    assert sequence.masked_token_ids == []


@pytest.mark.parametrize(
    "spans",
    [
        [SpanMessage(A, 18, 3)],
        [SpanMessage(A, 2, 0)],
        [SpanMessage(A, 2, 5), SpanMessage(B, 6, 2)],
        [SpanMessage(A, 2, 5, first_row=-1)],
        [SpanMessage(A, 2, 5, splittable=False, tail=14)],
        [SpanMessage(A, 2, 5, splittable=False, tail=2), SpanMessage(B, 8, 2)],
        [SpanMessage(A, 2, 5, tail=1)],
    ],
    ids=[
        "past the end",
        "empty",
        "overlapping",
        "before the first row",
        "a tail past the end",
        "a tail over the next",
        "a tail that may be cut off",
    ],
)
def test_malformed_spans_are_refused(spans: list[SpanMessage]) -> None:
    with pytest.raises(ValueError, match="span"):
        make(spans=spans)
