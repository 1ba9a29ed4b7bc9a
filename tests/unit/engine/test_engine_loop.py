"""The engine's promises one by one, over the toy model."""

from __future__ import annotations

import pytest

from llm_service.engine.engine import MAX_FAILED_STEPS, MAX_REST_S, RunnerBrokenError
from llm_service.engine.messages import AddSequence, SamplingSettings, StoppingSettings
from llm_service.engine.scheduler import MAX_YIELDS
from tests.property.toy_front import ITEM_ROWS, ToyFront, make_prompt
from tests.property.toy_model import Prompt, reference_tokens

A, B, C, D = ITEM_ROWS


def prompt(*parts: int | str, count: int = 4, **rules: object) -> Prompt:
    return make_prompt(parts, StoppingSettings(count), **rules)  # type: ignore[arg-type]


def text(length: int, token: int = 1) -> list[int]:
    return [(token + i) % 9 for i in range(length)]


def test_prefill_goes_on_up_to_the_rows_that_are_there() -> None:
    front = ToyFront()
    sequence_id = front.add(prompt(*text(6), B, *text(3)))
    assert front.wanted == {B: [sequence_id]}
    assert front.step() and not front.step(), "the text before the item, then nothing"
    assert front.engine.status().used_block_count == 2
    front.open(B)
    assert not front.step()
    front.deliver(B, 2)
    assert front.step() and not front.step()
    front.deliver(B)
    front.serve_all()
    front.check_answers()


def test_an_unsplittable_item_waits_for_all_its_rows() -> None:
    front = ToyFront()
    front.add(prompt(*text(2), B, unsplittable={B}))
    front.open(B)
    front.deliver(B, 4)
    assert front.step() and not front.step()
    front.deliver(B, 1)
    front.serve_all()
    front.check_answers()


def test_an_unsplittable_item_is_not_crowded_out_by_decoding() -> None:
    front = ToyFront(block_count=60, max_num_seqs=4, max_num_batched_tokens=9)
    front.open(C)
    front.deliver(C)
    for token in range(3):
        front.add(prompt(token, count=40))
    front.step()
    waiting = front.add(prompt(*text(1), C, count=2, unsplittable={C}))
    for _ in range(6):
        front.step()
    assert front.answers[waiting].ended
    front.serve_all()
    front.check_answers()


def test_decoding_does_not_wait_for_rows_or_for_a_long_prefill() -> None:
    front = ToyFront(block_count=80, max_num_batched_tokens=8)
    decoding = front.add(prompt(1, 2, count=30))
    front.step()
    front.add(prompt(*text(2), A))
    front.add(prompt(*text(60)))
    for expected in range(2, 12):
        front.step()
        assert len(front.answers[decoding].reports) == expected


def test_a_sequence_that_waits_for_rows_holds_up_nobody() -> None:
    front = ToyFront(max_num_seqs=1)
    stalled = front.add(prompt(*text(4), A))
    quick = front.add(prompt(3, 4))
    for _ in range(10):
        front.step()
    assert front.answers[quick].ended and not front.answers[stalled].ended


def test_a_sequence_that_waits_for_rows_gives_its_blocks_up() -> None:
    front = ToyFront(block_count=6)
    stalled = front.add(prompt(*text(16), A))
    front.step()
    assert front.engine.status().used_block_count == 4
    front.add(prompt(*text(20, token=5)))
    front.step()
    assert front.engine.status().preemption_count == 1
    front.serve_all()
    front.check_answers()
    assert not front.answers[stalled].cancelled


def test_it_does_so_a_few_times_only() -> None:
    front = ToyFront(block_count=6, max_num_batched_tokens=40)
    stalled = front.add(prompt(*text(16), A))
    front.step()
    for token in range(MAX_YIELDS):
        quick = front.add(prompt(*text(20, token + 3), count=1))
        front.step()
        assert front.answers[quick].ended
        front.step()
    late = front.add(prompt(*text(20, token=7), count=1))
    assert not front.step() and not front.answers[late].ended
    front.open(A)
    front.deliver(A)
    while not front.answers[stalled].ended:
        front.step()
    front.serve_all()
    front.check_answers()


def test_a_sequence_with_few_rows_is_not_passed_over_for_ever() -> None:
    front = ToyFront(block_count=12)
    front.open(A)
    front.deliver(A)
    front.add(prompt(*text(13), count=6))
    for _ in range(3):
        front.step()
    # Too long to find room beside one other; and two take turns, so that there always is one.
    patient = front.add(prompt(*text(32, token=8), A, *text(1), B), arrival=1.5)
    for number in range(300):
        while len(front.living()) < 3:
            front.add(prompt(*text(13, token=number % 7), count=6))
        front.step()
        if (patient, A) in front.used:
            break
    assert (patient, A) in front.used
    front.serve_all()
    front.check_answers()


def test_a_long_prompt_that_lacks_nothing_is_passed_by_nobody() -> None:
    front = ToyFront(block_count=12)
    for _ in range(2):
        front.add(prompt(*text(13), count=6))
        front.step()
    long = front.add(prompt(*text(36, token=8)))
    late = [front.add(prompt(*text(5, token=3), count=1)) for _ in range(3)]
    while not front.answers[long].reports:
        assert not any(front.answers[sequence_id].ended for sequence_id in late)
        front.step()
    front.serve_all()
    front.check_answers()


def test_the_youngest_is_preempted_and_computed_again() -> None:
    front = ToyFront(block_count=6, max_num_seqs=4)
    old, young = front.add(prompt(*text(8), count=12)), front.add(prompt(*text(8, token=4), count=12))
    while not front.answers[old].ended:
        front.step()
    assert front.engine.status().preemption_count >= 1
    assert not front.answers[young].ended
    front.serve_all()
    front.check_answers()


def test_a_preempted_sequence_asks_again_for_rows_that_are_gone() -> None:
    front = ToyFront(block_count=6, enable_prefix_caching=False)
    front.open(A)
    front.deliver(A)
    old = front.add(prompt(*text(8), count=12))
    young = front.add(prompt(A, *text(5), count=12))
    front.step()
    assert (young, A) in front.used
    front.close(A)
    assert front.wanted == {}
    while front.engine.status().preemption_count == 0:
        front.step()
    assert front.wanted == {A: [young]}
    front.serve_all()
    front.check_answers()
    assert front.answers[old].ended


def test_the_whole_prompt_in_the_cache_still_computes_its_last_token() -> None:
    front = ToyFront(block_size=4)
    first = front.add(prompt(*text(8)))
    front.serve_all()
    second = front.add(prompt(*text(8)))
    front.serve_all()
    report = front.answers[second].reports[0].first
    assert report is not None and report.cached_token_count == 4
    assert front.answers[first].token_ids == front.answers[second].token_ids


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    front = ToyFront(block_size=2, block_count=40)
    first = front.add(prompt(A, *text(3), count=6))
    front.serve_all()
    answer = front.answers[first].token_ids
    asked = dict(front.wanted)
    second = front.add(prompt(A, *text(3), *answer, 5, 6))
    report_free = dict(front.wanted) == asked
    front.serve_all()
    report = front.answers[second].reports[0].first
    # All but the answer's last token was computed: 3 + 3 + 5 tokens, in whole blocks.
    assert report is not None and report.cached_token_count == 10
    assert report_free, "rows that the cache covers are not asked for"
    front.check_answers()


def test_items_are_told_as_used_when_prefill_has_passed_them() -> None:
    front = ToyFront()
    front.open(A)
    front.deliver(A)
    sequence_id = front.add(prompt(*text(2), A, *text(2), B))
    front.step()
    assert front.used == [(sequence_id, A)]
    front.open(B)
    front.deliver(B)
    front.step()
    assert front.used == [(sequence_id, A), (sequence_id, B)]


def test_a_closed_item_is_asked_for_again_by_those_who_need_it() -> None:
    front = ToyFront()
    front.open(A)
    front.deliver(A, 1)
    needs = front.add(prompt(*text(2), A))
    front.add(prompt(*text(2)))
    assert front.wanted == {}
    front.step()
    front.close(A)
    assert front.wanted == {A: [needs]}
    front.serve_all()
    front.check_answers()


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    front = ToyFront(block_count=4, block_size=4)
    assert front.engine.max_model_len == 16
    refused, fits = front.add(prompt(*text(16))), front.add(prompt(*text(15), count=9))
    front.serve_all()
    assert front.answers[refused].refused and not front.answers[refused].reports
    (report,) = front.answers[fits].reports
    assert report.finish == "length"


def test_an_unsplittable_item_larger_than_a_step_is_refused() -> None:
    front = ToyFront(max_num_batched_tokens=8)
    refused = front.add(prompt(C, unsplittable={C}))
    front.step()
    assert front.answers[refused].refused and front.answers[refused].ended


def test_a_malformed_sequence_fails_alone() -> None:
    front = ToyFront()
    good = front.add(prompt(1, 2))
    message = AddSequence(2, b"\1\0\0\0", b"", 1, 1, [], SamplingSettings(), StoppingSettings(1), 0.0)
    front.answers[2] = front.answers[good].__class__(prompt(1))
    front.engine.receive(message)
    front.serve_all()
    assert front.answers[2].failed and not front.answers[good].failed


@pytest.mark.parametrize("step_count", range(6))
def test_cancel_frees_at_once(step_count: int) -> None:
    front = ToyFront(max_num_batched_tokens=9)
    front.open(A)
    front.deliver(A, 2)
    sequence_id = front.add(prompt(*text(10), A, *text(4)))
    for _ in range(step_count):
        front.step()
    front.cancel(sequence_id)
    front.cancel(sequence_id)
    assert front.engine.status().used_block_count == 0
    assert not front.step()
    assert front.answers[sequence_id].ended and front.runner.forgotten == [sequence_id]


def test_stop_and_length_are_told() -> None:
    front = ToyFront()
    plain = reference_tokens(prompt(1, 2, count=6), 48)
    stop = StoppingSettings(max_token_count=6, stop_token_ids=[plain[2]])
    stopped, long = front.add(make_prompt([1, 2], stop)), front.add(prompt(1, 2, count=6))
    front.serve_all()
    last = front.answers[stopped].reports[-1]
    assert (last.finish, last.stop_token_id) == ("stop", plain[2])
    last = front.answers[long].reports[-1]
    assert (last.finish, last.stop_token_id) == ("length", None)
    assert front.answers[long].token_ids == plain


def test_a_broken_sequence_fails_and_the_others_go_on() -> None:
    front = ToyFront(block_count=40)
    ids = [front.add(prompt(token, 2, 3)) for token in range(3)]
    front.runner.broken.add(ids[1])
    front.serve_all()
    assert [front.answers[i].failed for i in ids] == [False, True, False]
    front.check_answers()
    assert front.engine.status().used_block_count == 0


def test_a_sequence_without_a_token_fails_and_leaves_no_content_behind() -> None:
    front = ToyFront(block_size=2)
    front.runner.speechless.add(1)
    front.add(prompt(*text(8)))
    front.serve_all()
    assert front.answers[1].failed
    again = front.add(prompt(*text(8)))
    front.serve_all()
    report = front.answers[again].reports[0].first
    assert report is not None and report.cached_token_count == 0


def test_a_runner_that_fails_every_time_ends_the_engine() -> None:
    front = ToyFront()
    front.runner.broken.update(range(1, 10))
    with pytest.raises(RunnerBrokenError):
        for _ in range(MAX_FAILED_STEPS):
            front.add(prompt(1, 2))
            front.engine.step()


def test_status_counts() -> None:
    front = ToyFront(block_size=2, block_count=30)
    front.add(prompt(*text(5), count=3))
    front.serve_all()
    front.add(prompt(*text(5), count=3))
    front.serve_all()
    status = front.engine.status()
    assert status.prompt_token_count == 10 and status.generated_token_count == 6
    assert status.prefix_query_token_count == 10 and status.prefix_hit_token_count == 4
    assert status.step_count == 6 and status.step_seconds > 0
    assert status.running_sequence_count == status.waiting_sequence_count == 0
    assert status.block_count == 30 and status.resident_byte_count > 1 << 20


def test_decoding_rests_while_an_encoder_works_for_others_on_the_same_cores() -> None:
    front = ToyFront(block_count=80, rests_for_encoders=True)
    decoding = front.add(prompt(1, 2, count=8))
    assert front.step() and front.engine.rest_s == 0, "a prefill"
    assert front.step() and front.engine.rest_s == 0, "nobody waits for an encoder"
    waiting = front.add(prompt(*text(3), A))
    assert front.step() and front.engine.rest_s == 0, "its text before the item is computed at once"
    assert front.step() and 0 < front.engine.rest_s <= MAX_REST_S
    front.open(A)
    front.deliver(A)
    assert front.step() and front.engine.rest_s == 0, "its rows are there"
    assert len(front.answers[decoding].reports) == 5
    front.serve_all()
    front.check_answers()
    assert front.answers[waiting].ended


def test_decoding_rests_for_nobody_on_cores_of_its_own() -> None:
    front = ToyFront(block_count=80)
    front.add(prompt(1, 2, count=8))
    front.add(prompt(*text(3), A))
    for _ in range(4):
        assert front.step() and front.engine.rest_s == 0


def test_decoding_does_not_rest_for_sequences_that_lack_a_seat() -> None:
    front = ToyFront(block_count=80, max_num_seqs=2, rests_for_encoders=True)
    for token in range(6):
        front.add(prompt(token, 2, count=8))
    for _ in range(6):
        assert front.step() and front.engine.rest_s == 0


def test_no_more_sequences_hold_blocks_than_may() -> None:
    """One that waits for rows yields its place to one that can go on, and takes it again later."""
    front = ToyFront(block_count=60, max_num_seqs=1, max_held=1)
    waiting = front.add(prompt(*text(6), B, *text(3)))
    assert front.step()
    assert front.engine.status().running_sequence_count == 1
    ready = front.add(prompt(*text(5)))
    for _ in range(8):
        front.step()
        assert front.engine.status().used_block_count <= 4
    assert front.answers[ready].ended and not front.answers[waiting].ended
    assert front.engine.status().preemption_count == 1
    front.serve_all()
    front.check_answers()


def test_a_preemption_is_told_with_the_next_step_that_runs() -> None:
    front = ToyFront(block_count=4, max_num_seqs=4, max_num_batched_tokens=64)
    for token in range(3):
        front.add(prompt(*text(4, token), count=8))
    front.serve_all()
    assert front.engine.status().preemption_count > 0
    front.check_answers()


def test_tokens_that_may_wait_come_with_the_last_or_with_company() -> None:
    front = ToyFront()
    patient = front.add(prompt(1, 2, count=6), tokens_may_wait=True)
    counts = []
    for _ in range(6):
        front.step()
        counts.append(len(front.answers[patient].reports))
    assert counts == [1, 1, 1, 1, 1, 6]
    patient = front.add(prompt(1, 2, count=6), tokens_may_wait=True)
    front.step()
    front.step()
    other = front.add(prompt(3, 4, count=1))
    front.step()
    assert [len(front.answers[each].reports) for each in (patient, other)] == [3, 1]
    front.step()
    front.cancel(patient)
    front.step()
    assert len(front.answers[patient].reports) == 4 and front.answers[patient].ended
    front.check_answers()
