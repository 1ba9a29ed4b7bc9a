"""Sampling parameters: every range held, every default taken from where it belongs."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llm_service.sampling import GenerationDefaults, plan_generation
from protos.llm.v1 import llm_service_pb2 as pb
from shared.errors import InvalidRequestError

VOCABULARY = 100
DEFAULTS = GenerationDefaults(
    temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1, end_token_ids=(7, 8)
)


def request(**fields: Any) -> pb.GenerateRequest:
    sampling = {
        name: fields.pop(name)
        for name in list(fields)
        if name in pb.SamplingParameters.DESCRIPTOR.fields_by_name
    }
    top = {name: fields.pop(name) for name in list(fields) if name == "top_logprobs"}
    return pb.GenerateRequest(
        sampling=pb.SamplingParameters(**sampling), stopping=pb.StoppingParameters(**fields), **top
    )


def refused_param(**fields: Any) -> str | None:
    with pytest.raises(InvalidRequestError) as caught:
        plan_generation(request(**fields), DEFAULTS, VOCABULARY)
    return caught.value.param


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.5),
        ("logit_bias", {VOCABULARY: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: math.nan}),
        ("choice_count", 0),
        ("choice_count", 65),
    ],
)
def test_a_sampling_parameter_out_of_range_is_named(name: str, bad: Any) -> None:
    assert refused_param(**{name: bad}) == f"sampling.{name}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_token_count": 0}, "stopping.max_token_count"),
        ({"min_token_count": -1}, "stopping.min_token_count"),
        ({"min_token_count": 5, "max_token_count": 4}, "stopping.min_token_count"),
        ({"stop_strings": ["a", ""]}, "stopping.stop_strings[1]"),
        ({"stop_strings": [str(i) for i in range(17)]}, "stopping.stop_strings"),
        ({"stop_token_ids": [VOCABULARY]}, "stopping.stop_token_ids"),
        ({"stop_token_ids": list(range(129))}, "stopping.stop_token_ids"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": -1}, "top_logprobs"),
    ],
)
def test_another_parameter_out_of_range_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused_param(**fields) == param


def test_unset_fields_take_the_checkpoints_defaults() -> None:
    plan = plan_generation(request(), DEFAULTS, VOCABULARY)
    assert (plan.sampling.temperature, plan.sampling.top_p, plan.sampling.top_k) == (0.7, 0.8, 20)
    assert plan.sampling.repetition_penalty == 1.1
    assert plan.sampling.seed is None and plan.sampling.top_logprobs is None
    assert plan.stopping(9).stop_token_ids == [7, 8]


def test_given_fields_win_even_where_they_are_zero() -> None:
    plan = plan_generation(request(temperature=0.0, top_k=-1, top_p=1.0), DEFAULTS, VOCABULARY)
    assert (plan.sampling.temperature, plan.sampling.top_k, plan.sampling.top_p) == (0.0, 0, 1.0)


def test_stop_tokens_join_the_end_tokens_unless_those_are_ignored() -> None:
    both = plan_generation(request(stop_token_ids=[3, 7]), DEFAULTS, VOCABULARY)
    assert both.stopping(1).stop_token_ids == [7, 8, 3]
    own = plan_generation(request(stop_token_ids=[3], ignore_eos=True), DEFAULTS, VOCABULARY)
    assert own.stopping(1).stop_token_ids == [3]


def test_each_choice_has_its_own_seed_within_64_bits() -> None:
    plan = plan_generation(request(seed=2**63 - 1, choice_count=3), DEFAULTS, VOCABULARY)
    assert [plan.sampling_of(i).seed for i in range(3)] == [2**63 - 1, -(2**63), -(2**63) + 1]
    unseeded = plan_generation(request(choice_count=2), DEFAULTS, VOCABULARY)
    assert unseeded.sampling_of(1).seed is None


def test_a_checkpoint_that_does_not_sample_is_greedy_unless_asked() -> None:
    config = {"do_sample": False, "temperature": 0.9, "eos_token_id": [4, 5]}
    defaults = GenerationDefaults.of_checkpoint(config, {}, 1, take_sampling=True)
    assert defaults.temperature == 0.0 and defaults.end_token_ids == (4, 5)
    asked = plan_generation(request(temperature=0.5), defaults, VOCABULARY)
    assert asked.sampling.temperature == 0.5


def test_own_defaults_leave_the_end_tokens() -> None:
    defaults = GenerationDefaults.of_checkpoint(
        {"temperature": 0.1}, {"eos_token_id": 4}, 1, take_sampling=False
    )
    assert defaults == GenerationDefaults(end_token_ids=(4,))


def test_the_end_token_comes_from_the_first_source_that_names_one() -> None:
    nested = {"text_config": {"eos_token_id": 6}}
    assert GenerationDefaults.of_checkpoint({}, nested, 1, take_sampling=True).end_token_ids == (6,)
    assert GenerationDefaults.of_checkpoint({}, {}, 1, take_sampling=True).end_token_ids == (1,)
    assert GenerationDefaults.of_checkpoint({}, {}, None, take_sampling=True).end_token_ids == ()
