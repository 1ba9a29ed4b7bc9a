"""Two blocks have one hash exactly when their slots hold the same keys and values."""

from __future__ import annotations

import numpy as np

from llm_service.engine.block_hash import hashes_of
from llm_service.engine.messages import AddSequence, SamplingSettings, SpanMessage, StoppingSettings
from llm_service.engine.sequence import Sequence

BLOCK_SIZE = 4
A, B = "a" * 64, "b" * 64


def sequence(token_ids: list[int], *spans: SpanMessage) -> Sequence:
    flat = np.array(token_ids, dtype="<i4").tobytes()
    sampling, stopping = SamplingSettings(), StoppingSettings(5)
    return Sequence(
        AddSequence(1, flat, flat, 1, len(token_ids), list(spans), sampling, stopping, arrival=0.0)
    )


def hashes(token_ids: list[int], *spans: SpanMessage) -> list[bytes]:
    return hashes_of(sequence(token_ids, *spans), len(token_ids) // BLOCK_SIZE, BLOCK_SIZE)


def test_equal_tokens_have_equal_hashes() -> None:
    assert hashes([1, 2, 3, 4, 5, 6, 7, 8]) == hashes([1, 2, 3, 4, 5, 6, 7, 8])


def test_a_token_changes_its_block_and_all_that_follow() -> None:
    one, other = hashes([1, 2, 3, 4] * 3), hashes([1, 2, 3, 4, 1, 2, 9, 4, 1, 2, 3, 4])
    assert one[0] == other[0] and one[1] != other[1] and one[2] != other[2]


def test_equal_blocks_after_different_ones_differ() -> None:
    one = hashes([1, 2, 3, 4] * 2)
    assert one[0] != one[1]


def test_another_item_changes_its_blocks() -> None:
    tokens = [7, 0, 0, 0, 0, 0, 7, 7]
    one, other = hashes(tokens, SpanMessage(A, 1, 5)), hashes(tokens, SpanMessage(B, 1, 5))
    assert one[0] != other[0] and one[1] != other[1]
    assert hashes(tokens)[0] not in (one[0], other[0])


def test_an_item_after_the_block_does_not_change_it() -> None:
    tokens = [7, 7, 7, 7, 0, 0, 0, 0]
    assert hashes(tokens, SpanMessage(A, 4, 4))[0] == hashes(tokens, SpanMessage(B, 4, 4))[0]


def test_other_rows_of_the_same_item_change_the_block() -> None:
    tokens = [0, 0, 0, 0]
    assert hashes(tokens, SpanMessage(A, 0, 4)) != hashes(tokens, SpanMessage(A, 0, 4, first_row=4))


def test_the_same_item_elsewhere_in_the_block_changes_it() -> None:
    tokens = [0, 0, 0, 0]
    assert hashes(tokens, SpanMessage(A, 0, 2)) != hashes(tokens, SpanMessage(A, 1, 2))
    one_span = hashes(tokens, SpanMessage(A, 0, 4))
    assert one_span != hashes(tokens, SpanMessage(A, 0, 2), SpanMessage(A, 2, 2))


def test_a_generated_token_counts_like_one_of_the_prompt() -> None:
    grown = sequence([1, 2, 3])
    grown.token_ids.append(4)
    assert hashes_of(grown, 1, BLOCK_SIZE) == hashes([1, 2, 3, 4])


def test_each_of_many_runs_counts_from_its_own_block_on() -> None:
    starts = range(1, 60, 4)

    def shown(other: int | None) -> list[bytes]:
        spans = [SpanMessage(B if start == other else A, start, 3, True, start) for start in starts]
        return hashes([7] * 64, *spans)

    for start in starts:
        equal = [one == two for one, two in zip(shown(None), shown(start), strict=True)]
        assert equal == [place < start // BLOCK_SIZE for place in range(16)]
