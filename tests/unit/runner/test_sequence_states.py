"""States beside the KV blocks: kept, carried on, given back, and never counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from llm_service.engine.batch import ScheduledBatch, ScheduledSequence
from llm_service.runner.load import load_runner
from llm_service.runner.sequence_states import SequenceStates
from shared.families.base import StateShape
from tests.families import all_cases
from tests.unit.runner import test_equality
from tests.unit.runner.conftest import Tiny, make_tiny
from tests.unit.runner.driver import Driver, settings_for
from tests.unit.runner.test_equality import CASES, COUNT, _add

CPU = torch.device("cpu")
SHAPES = {"sums": StateShape(2, (3,), exact=True), "last": StateShape(1, (2, 2), exact=False)}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(all_cases()["qwen3_5"].build(tmp_path_factory.mktemp("qwen3_5")))


@pytest.fixture
def tiny(loaded: Tiny) -> Iterator[Tiny]:
    """The checkpoint with a driver that holds no state yet."""
    driver = Driver(loaded.checkpoint)
    driver.rows = loaded.driver.rows
    yield replace(loaded, driver=driver)


@pytest.mark.parametrize(
    "check",
    [
        test_equality.test_alone,
        test_equality.test_answers_depend_on_the_picture,
        test_equality.test_sixteen_at_once,
        test_equality.test_recomputed_after_preemption,
        test_equality.test_many_lengths_at_once,
    ],
    ids=lambda check: check.__name__,
)
def test_linear_layers_answer_as_transformers(check: Any, tiny: Tiny) -> None:
    check(tiny)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 16, 33])
def test_prompt_in_chunks(tiny: Tiny, chunk: int) -> None:
    test_equality.test_prompt_in_chunks(tiny, chunk)


@pytest.mark.parametrize("seed", range(4))
def test_random_mixture_of_chunks_and_decoding(tiny: Tiny, seed: int) -> None:
    test_equality.test_random_mixture_of_chunks_and_decoding(tiny, seed)


def test_a_prompt_of_one_token(tiny: Tiny) -> None:
    prompts = [[5], [6], [7, 8]]
    expected = [tiny.expected(prompt, [], COUNT) for prompt in prompts]
    sequences = [tiny.driver.add(prompt) for prompt in prompts]
    assert tiny.driver.generate(sequences, COUNT) == expected


def test_a_failed_step_is_run_again_as_if_it_had_not_been(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that fails behind its layers has moved no state."""
    pairs = [_add(tiny, case) for case in CASES[:3]]
    sequences = [sequence for sequence, _ in pairs]
    tiny.driver.step([(sequence, 9) for sequence in sequences])
    runner: Any = tiny.driver.runner
    for count in (9, 1000, 1):
        with monkeypatch.context() as broken:
            broken.setattr(runner, "_sampler", None)
            items = [
                tiny.driver._schedule(sequence, min(count, len(sequence.token_ids) - sequence.computed_count))
                for sequence in sequences
            ]
            # Only what samples can fail there.
            items = [replace(item, samples=True) for item in items]
            with pytest.raises(AttributeError):
                runner.run(ScheduledBatch(items), tiny.driver.rows)
        tiny.driver.step([(sequence, count) for sequence in sequences])
    assert tiny.driver.generate(sequences, COUNT) == [expected for _, expected in pairs]


def test_a_state_that_does_not_reach_the_step_is_an_error(tiny: Tiny) -> None:
    sequence, _ = _add(tiny, CASES[0])
    tiny.driver.step([(sequence, 4)])
    tiny.driver.runner.forget(sequence.sequence_id)
    with pytest.raises(AssertionError, match="reaches None, not 4"):
        tiny.driver.step([(sequence, 4)])


def test_places_are_given_back(tiny: Tiny) -> None:
    driver = Driver(tiny.checkpoint, max_num_seqs=2)
    driver.rows = tiny.driver.rows
    assert driver.runner.max_held == 2
    assert not driver.runner.shares_prefixes
    for case in CASES[:4]:
        sequence, expected = _add(replace(tiny, driver=driver), case)
        assert driver.generate([sequence], COUNT) == [expected]
        driver.runner.forget(sequence.sequence_id)
    first, second, third = (_add(replace(tiny, driver=driver), CASES[0])[0] for _ in range(3))
    driver.step([(first, 3), (second, 3)])
    item = driver._schedule(third, 3)
    driver.runner.run(ScheduledBatch([item], preempted=[first.sequence_id]), driver.rows)


def test_warming_up_leaves_no_state(tiny: Tiny) -> None:
    runner = load_runner(settings_for(tiny.checkpoint.folder, max_num_seqs=1), lambda fraction, text: None)
    runner.warm_up()
    assert len(runner._states._free) == 1


def sequence(tiny: Tiny, start: int, count: int, driver_sequence: Any) -> ScheduledSequence:
    return ScheduledSequence(driver_sequence, start, count, False)


def test_the_store(tiny: Tiny) -> None:
    states = SequenceStates(SHAPES, 3, torch.bfloat16, CPU)
    one, two = (tiny.driver.add([1, 2, 3, 4]) for _ in range(2))
    assert states.byte_count == 3 * (2 * 3 * 4 + 4 * 2)
    items = [sequence(tiny, 0, 2, one), sequence(tiny, 0, 3, two)]

    step = states.begin(items, 0)["states"]
    assert step.counts == [2, 3]
    assert torch.equal(step.read("sums", 1, slice(0, 2)), torch.zeros(2, 3))
    step.write("sums", 1, slice(0, 2), torch.tensor([[1.0] * 3, [2.0] * 3]))
    step.write("last", 0, slice(1, 2), torch.full((1, 2, 2), 5.0))
    states.keep(items)

    later = [sequence(tiny, 3, 1, two), sequence(tiny, 2, 2, one)]
    step = states.begin(later, 1)["states"]
    assert step.read("sums", 1, slice(0, 2))[:, 0].tolist() == [2.0, 1.0]
    assert step.read("last", 0, slice(0, 1)).dtype == torch.bfloat16
    assert step.read("last", 0, slice(0, 2)).flatten(1)[:, 0].tolist() == [5.0, 0.0]
    step.write("sums", 1, slice(0, 1), torch.full((1, 3), 9.0))

    # Not kept: the step is run again, and reads what it read before.
    step = states.begin(later, 1)["states"]
    assert step.read("sums", 1, slice(0, 1))[0, 0] == 2.0

    # From the first token on again: zeros.
    step = states.begin([sequence(tiny, 0, 1, two)], 1)["states"]
    assert not step.read("sums", 1, slice(0, 1)).any()
    states.drop([one.sequence_id, two.sequence_id, 12345])
    assert len(states._free) == 3


def test_most_models_keep_none() -> None:
    states = SequenceStates({}, 64, torch.float32, CPU)
    assert states.capacity is None
    assert states.begin([], 0) == {}
    states.keep([])
    states.drop([1])


def test_bfloat16(tiny: Tiny) -> None:
    """The recurrent state stays exact; answers in chunks are much the same as whole ones."""
    driver = Driver(tiny.checkpoint, dtype="bfloat16")
    driver.rows = tiny.driver.rows
    pools = driver.runner._states._pools
    assert pools["recurrent"].dtype == torch.float32
    assert pools["convolution"].dtype == torch.bfloat16
    pairs = [_add(replace(tiny, driver=driver), case) for case in CASES]
    answers = driver.generate([sequence for sequence, _ in pairs], 1, chunk=7)
    agreed = sum(answer == expected[:1] for answer, (_, expected) in zip(answers, pairs, strict=True))
    assert agreed >= len(CASES) - 2
