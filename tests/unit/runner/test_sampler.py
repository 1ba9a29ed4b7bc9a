"""The sampler against the definitions: transformers' processors, counted frequencies, raw softmax."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm_service.engine.messages import AddSequence, SamplingSettings, StoppingSettings
from llm_service.engine.sequence import Sequence
from llm_service.runner.sampling.adjustments import Adjustments
from llm_service.runner.sampling.sampler import BLOCK_COLUMNS, Sampler, greatest
from llm_service.runner.sampling.truncation import truncate

VOCABULARY = 50


def make(
    sequence_id: int = 1,
    prompt: tuple[int, ...] = (1, 2, 3),
    output: tuple[int, ...] = (),
    stopping: StoppingSettings | None = None,
    **settings: Any,
) -> Sequence:
    """A sequence with these tokens and sampling settings."""
    positions = np.arange(len(prompt), dtype="<i4")
    sequence = Sequence(
        AddSequence(
            sequence_id=sequence_id,
            token_ids=np.asarray(prompt, dtype="<i4").tobytes(),
            positions=positions.tobytes(),
            axes=1,
            next_position=len(prompt),
            spans=[],
            sampling=SamplingSettings(**settings),
            stopping=stopping or StoppingSettings(max_token_count=10_000),
            arrival=0.0,
        )
    )
    sequence.token_ids.extend(output)
    return sequence


def logits_of(rows: int = 1, seed: int = 0, width: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def draw_many(logits: torch.Tensor, count: int, **settings: Any) -> Counter[int]:
    """Frequencies of the draws of a growing sequence."""
    sampler, sequence, counts = Sampler(), make(**settings), Counter[int]()
    for _ in range(count):
        (token,) = sampler.sample(logits.clone(), [sequence])
        counts[token.token_id] += 1
        sequence.token_ids.append(token.token_id)
    return counts


def test_greedy_takes_the_greatest_and_the_lowest_of_equals() -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[0, [9, 7, 30]] = 5.0
    logits[1, 49] = 0.1
    tokens = Sampler().sample(logits, [make(1), make(2)])
    assert [(token.sequence_id, token.token_id) for token in tokens] == [(1, 7), (2, 49)]


@pytest.mark.parametrize("width", [1, 100, BLOCK_COLUMNS, BLOCK_COLUMNS + 1, 1000, 32_003])
def test_greatest_is_the_argmax(width: int) -> None:
    """Of equals the first, of what is no number the first of these, in whatever block they stand."""
    logits = torch.randn(40, width, generator=torch.Generator().manual_seed(width))
    logits[::2] = logits[::2].round()
    logits[4, width - 1] = logits[5, width // 2] = torch.nan
    logits[6], logits[7, :-1] = -torch.inf, -torch.inf
    logits[8, width - 1] = logits[9, 0] = torch.inf
    logits[10, width - 1] = logits[10, width // 2] = logits[11, width // 3] = logits[11, width // 2] = (
        torch.nan
    )
    assert torch.equal(greatest(logits), logits.argmax(1, keepdim=True))
    assert greatest(logits[:0]).shape == (0, 1)


def test_results_keep_the_order_of_rows() -> None:
    logits = logits_of(5)
    sequences = [
        make(9),
        make(4, temperature=1.0),
        make(7, top_logprobs=1),
        make(1, temperature=0.5),
        make(2),
    ]
    assert [token.sequence_id for token in Sampler().sample(logits, sequences)] == [9, 4, 7, 1, 2]


@pytest.mark.parametrize("penalty", [0.6, 1.3, 2.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = logits_of()
    sequence = make(prompt=(4, 4, 8, 20), output=(30, 8, 31), repetition_penalty=penalty)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([sequence.token_ids]), logits.clone())
    Adjustments().apply(logits, [sequence])
    torch.testing.assert_close(logits, expected)


def test_a_penalty_that_is_zero_in_float32_keeps_logits_finite() -> None:
    logits = logits_of()
    Adjustments().apply(logits, [make(prompt=(4, 8), output=(30,), repetition_penalty=1e-300)])
    assert logits.isfinite().all()


def test_penalties_follow_a_growing_sequence() -> None:
    """What is kept between steps equals what a fresh count gives."""
    kept = Adjustments()
    sequence = make(repetition_penalty=1.4, frequency_penalty=0.3)
    for token in (5, 5, 9, 1, 5):
        sequence.token_ids.append(token)
        ours, fresh = logits_of(), logits_of()
        kept.apply(ours, [sequence])
        Adjustments().apply(fresh, [sequence])
        assert torch.equal(ours, fresh)


def test_frequency_and_presence_count_the_output_alone() -> None:
    logits, sequence = logits_of(), make(prompt=(5, 6), output=(6, 6, 9))
    sequence.sampling = SamplingSettings(frequency_penalty=0.5, presence_penalty=0.25)
    expected = logits.clone()
    expected[0, 6] -= 2 * 0.5 + 0.25
    expected[0, 9] -= 0.5 + 0.25
    Adjustments().apply(logits, [sequence])
    torch.testing.assert_close(logits, expected)


def test_bias_and_stop_masks_touch_their_row_alone() -> None:
    logits = logits_of(3)
    expected = logits.clone()
    expected[0, 3] += 100
    expected[0, 4] -= 100
    expected[1, [10, 11]] = -math.inf
    waiting = StoppingSettings(max_token_count=9, min_token_count=2, stop_token_ids=[10, 11, VOCABULARY + 5])
    sequences = [
        make(1, logit_bias={3: 100.0, 4: -100.0, VOCABULARY: 1.0}),
        make(2, stopping=waiting, output=(1,)),
        make(3, stopping=waiting, output=(1, 1)),
    ]
    Adjustments().apply(logits, sequences)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 1},
        {"top_k": 7},
        {"top_p": 0.4},
        {"top_p": 0.9},
        {"top_p": 0.0001},
        {"min_p": 0.1},
        {"top_k": 9, "top_p": 0.7},
        {"top_k": 20, "top_p": 0.95, "min_p": 0.05},
        {"top_k": 1000},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("width", [VOCABULARY, 3000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_truncation_keeps_what_transformers_keeps(
    settings: dict[str, float], width: int, temperature: float
) -> None:
    logits = logits_of(4, width=width)
    expected = TemperatureLogitsWarper(temperature)(torch.empty(0), logits.clone())
    if "top_k" in settings:
        expected = TopKLogitsWarper(int(settings["top_k"]))(torch.empty(0), expected)
    if "top_p" in settings:
        expected = TopPLogitsWarper(settings["top_p"])(torch.empty(0), expected)
    if "min_p" in settings:
        expected = MinPLogitsWarper(settings["min_p"])(torch.empty(0), expected)
    scaled = (logits - logits.amax(dim=1, keepdim=True)) / temperature
    truncate(scaled, [SamplingSettings(temperature=temperature, **settings)] * 4)  # type: ignore[arg-type]
    assert torch.equal(scaled.isinf(), expected.isinf())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("top_p", [0.9999999, 0.99999999999])
def test_a_mass_that_rounds_to_everything_keeps_everything_that_counts(top_p: float) -> None:
    """Rounding may leave the sorted values a hair short of the whole; the search must end."""
    logits = torch.zeros(3, 100_003)
    logits[1] = logits_of(1, width=100_003)[0]
    logits -= logits.amax(dim=1, keepdim=True)
    kept = logits.clone()
    truncate(kept, [SamplingSettings(temperature=1.0, top_p=top_p)] * 3)
    removed = logits.exp().masked_fill(kept.isfinite(), 0).sum(dim=1) / logits.exp().sum(dim=1)
    assert removed.max() < 1e-5


def test_truncation_of_a_row_does_not_depend_on_its_neighbours() -> None:
    kinds = [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}, {}, {"top_k": 40, "top_p": 0.9}, {"top_p": 0.999}]
    settings = [SamplingSettings(temperature=1.0, **kind) for kind in kinds]  # type: ignore[arg-type]
    logits = logits_of(len(kinds), width=3000)
    logits -= logits.amax(dim=1, keepdim=True)
    together = logits.clone()
    truncate(together, settings)
    for row, each in enumerate(settings):
        alone = logits[row : row + 1].clone()
        truncate(alone, [each])
        assert torch.equal(alone[0], together[row])


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    count = 6000
    frequencies = draw_many(logits, count, temperature=2.0, seed=3)
    expected = (logits[0] / 2.0).softmax(dim=0).tolist()
    for token, probability in enumerate(expected):
        deviation = math.sqrt(count * probability * (1 - probability))
        assert abs(frequencies[token] - count * probability) < 4.5 * deviation


def test_draws_never_leave_what_truncation_keeps() -> None:
    logits = logits_of()
    kept = set(logits[0].topk(3).indices.tolist())
    assert set(draw_many(logits, 300, temperature=10.0, seed=1, top_k=3)) == kept


def test_a_tiny_temperature_is_greedy() -> None:
    logits = logits_of()
    assert draw_many(logits, 5, temperature=1e-38) == {int(logits.argmax()): 5}


def test_a_seed_repeats_whatever_runs_beside_it() -> None:
    def run(neighbours: int, sequence_id: int) -> list[int]:
        sampler, tokens = Sampler(), []
        sequence = make(sequence_id, temperature=1.0, top_p=0.95, seed=11)
        others = [make(100 + index, temperature=1.0, top_k=index) for index in range(neighbours)]
        for step in range(20):
            logits = logits_of(1 + neighbours, seed=step)
            logits[neighbours] = logits_of(1, seed=1000 + step)[0]
            token = sampler.sample(logits, [*others, sequence])[-1]
            sequence.token_ids.append(token.token_id)
            tokens.append(token.token_id)
        return tokens

    assert run(0, 1) == run(5, 2)


def test_seeds_differ_and_no_seed_differs_by_sequence() -> None:
    sequences = [make(index, temperature=1.0, seed=index) for index in range(40)]
    sequences += [make(100 + index, temperature=1.0) for index in range(40)]
    logits = torch.zeros(len(sequences), 1000)
    tokens = [token.token_id for token in Sampler().sample(logits, sequences)]
    assert len(set(tokens[:40])) > 30
    assert len(set(tokens[40:])) > 30


def test_logprobs_are_raw() -> None:
    logits = logits_of(3)
    raw = logits.log_softmax(dim=1)
    sequences = [
        make(1, top_logprobs=3, logit_bias={40: 100.0}),
        make(2),
        make(3, top_logprobs=0, temperature=3.0, seed=5),
    ]
    first, second, third = Sampler().sample(logits.clone(), sequences)
    assert first.token_id == 40
    assert first.logprob == pytest.approx(raw[0, 40].item(), abs=1e-6)
    values, ids = raw[0].topk(3)
    assert first.top is not None
    assert [token for token, _ in first.top] == ids.tolist()
    assert [value for _, value in first.top] == pytest.approx(values.tolist(), abs=1e-6)
    assert (second.logprob, second.top) == (None, None)
    assert third.top == []
    assert third.logprob == pytest.approx(raw[2, third.token_id].item(), abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_p": 0.5}, {"top_logprobs": 2}], ids=str)
def test_logits_that_are_not_finite_fail_their_sequence_alone(settings: dict[str, Any]) -> None:
    logits = logits_of(3)
    logits[1, 17] = math.nan
    sequences = [make(1, **settings), make(2, **settings), make(3, **settings)]
    first, broken, third = Sampler().sample(logits.clone(), sequences)
    assert broken.failure is not None
    assert broken.token_id == -1
    assert first.failure is None
    assert third.failure is None


def test_forgetting_is_complete() -> None:
    sampler = Sampler()
    sampler.sample(logits_of(), [make(8, repetition_penalty=2.0)])
    sampler.forget(8)
    sampler.forget(8)
    fresh = make(8, prompt=(9,), repetition_penalty=2.0)
    expected = logits_of()
    Adjustments().apply(expected, [fresh])
    assert sampler.sample(logits_of(), [fresh])[0].token_id == int(expected.argmax())
