"""Sampling and stopping parameters: checked, and completed with defaults.

Knows the ranges of the wire contract and the checkpoint's generation config.
Does not know how tokens are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from llm_service.engine.messages import SamplingSettings, StoppingSettings
from protos.llm.v1 import llm_service_pb2 as pb
from shared.errors import InvalidRequestError
from shared.families.token_rules import TokenRules

MAX_CHOICE_COUNT = 64
MAX_LOGIT_BIAS_COUNT = 1024
MAX_ALLOWED_TOKEN_COUNT = 1024
MAX_STOP_STRING_COUNT = 16
MAX_STOP_TOKEN_COUNT = 128
MAX_TOP_LOGPROBS = 20
MAX_STOP_STRING_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What unset sampling fields mean, and which tokens end a sequence."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    end_token_ids: tuple[int, ...] = ()

    @classmethod
    def of_checkpoint(
        cls,
        generation_config: Mapping[str, Any],
        config: Mapping[str, Any],
        tokenizer_end_id: int | None,
        *,
        take_sampling: bool,
        temperature: float = 1.0,
    ) -> GenerationDefaults:
        """Reads a checkpoint's own defaults.

        Args:
            generation_config: generation_config.json, or {}.
            config: config.json.
            tokenizer_end_id: the tokenizer's end token, for checkpoints that
                name none elsewhere.
            take_sampling: False leaves the sampling fields at Percept's own.
            temperature: where the checkpoint says none.
        """
        end = end_token_ids(generation_config, config, tokenizer_end_id)
        if not take_sampling:
            return cls(temperature=temperature, end_token_ids=end)
        given = {"temperature": temperature} | {
            name: generation_config[name]
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
            if generation_config.get(name) is not None
        }
        if generation_config.get("do_sample") is False:
            given["temperature"] = 0.0
        return cls(**given, end_token_ids=end)


def end_token_ids(
    generation_config: Mapping[str, Any], config: Mapping[str, Any], tokenizer_end_id: int | None
) -> tuple[int, ...]:
    """The tokens that end a sequence, from the first source that names any."""
    sources = (generation_config, config, config.get("text_config") or {}, {"eos_token_id": tokenizer_end_id})
    for source in sources:
        ids = source.get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (int(ids),)
    return ()


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """Checked parameters of one request.

    Attributes:
        sampling: of choice 0; choice i takes `sampling_of(i)`.
        max_token_count: most tokens of a choice, or None for what fits.
        end_token_ids: of the model, unless they are to be ignored.
        stop_token_ids: the caller's own.
    """

    sampling: SamplingSettings
    choice_count: int
    max_token_count: int | None
    min_token_count: int
    end_token_ids: tuple[int, ...]
    stop_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    include_stop_string: bool

    def sampling_of(self, choice_index: int) -> SamplingSettings:
        """Sampling of one choice: its own seed, where there is one."""
        if self.sampling.seed is None or choice_index == 0:
            return self.sampling
        return structs.replace(self.sampling, seed=_wrap(self.sampling.seed + choice_index))

    def under(self, rules: TokenRules) -> GenerationPlan:
        """The same plan where a prompt's rules hold. Tokens that they fill in come on top of the counts."""
        if rules == self.sampling.rules:
            return self
        more, most = len(rules.leading), self.max_token_count
        return replace(
            self,
            sampling=structs.replace(self.sampling, rules=rules),
            max_token_count=None if most is None else most + more,
            min_token_count=self.min_token_count + more if self.min_token_count else 0,
        )

    def stopping(self, max_token_count: int) -> StoppingSettings:
        """What the engine must know about stopping."""
        return StoppingSettings(
            max_token_count=max_token_count,
            min_token_count=self.min_token_count,
            stop_token_ids=list(dict.fromkeys((*self.end_token_ids, *self.stop_token_ids))),
        )


def _wrap(seed: int) -> int:
    """Keeps a seed within 64 signed bits."""
    return (seed + 2**63) % 2**64 - 2**63


def plan_generation(
    request: pb.GenerateRequest, defaults: GenerationDefaults, vocabulary_size: int
) -> GenerationPlan:
    """Checks a request's parameters and completes them.

    Raises:
        InvalidRequestError: a field is out of range; `param` is its path.
    """
    stopping = request.stopping
    _check_stopping(stopping, vocabulary_size)
    _check_choice_is_left(request, defaults)
    return GenerationPlan(
        sampling=_sampling(request, defaults, vocabulary_size),
        choice_count=_choice_count(request.sampling),
        max_token_count=stopping.max_token_count if stopping.HasField("max_token_count") else None,
        min_token_count=stopping.min_token_count,
        end_token_ids=() if stopping.ignore_eos else defaults.end_token_ids,
        stop_token_ids=tuple(stopping.stop_token_ids),
        stop_strings=tuple(dict.fromkeys(stopping.stop_strings)),
        include_stop_string=stopping.include_stop_string,
    )


def _check_choice_is_left(request: pb.GenerateRequest, defaults: GenerationDefaults) -> None:
    allowed = set(request.sampling.allowed_token_ids)
    ends = {*defaults.end_token_ids, *request.stopping.stop_token_ids}
    if request.stopping.min_token_count and allowed and allowed <= ends:
        raise InvalidRequestError(
            "all allowed tokens end the answer, which is to have min_token_count tokens",
            param="sampling.allowed_token_ids",
        )


def _sampling(
    request: pb.GenerateRequest, defaults: GenerationDefaults, vocabulary_size: int
) -> SamplingSettings:
    wire = request.sampling
    _check_sampling(wire, vocabulary_size)
    top_k = wire.top_k if wire.HasField("top_k") else defaults.top_k
    return SamplingSettings(
        temperature=wire.temperature if wire.HasField("temperature") else defaults.temperature,
        top_p=wire.top_p if wire.HasField("top_p") else defaults.top_p,
        top_k=max(top_k, 0),
        min_p=wire.min_p if wire.HasField("min_p") else defaults.min_p,
        seed=wire.seed if wire.HasField("seed") else None,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        repetition_penalty=(
            wire.repetition_penalty if wire.HasField("repetition_penalty") else defaults.repetition_penalty
        ),
        logit_bias=dict(wire.logit_bias),
        top_logprobs=_top_logprobs(request),
        allowed_token_ids=list(dict.fromkeys(wire.allowed_token_ids)),
        measured=request.speech_measures,
    )


def _check_sampling(wire: pb.SamplingParameters, vocabulary_size: int) -> None:
    _check_range(wire, "temperature", 0, 2)
    _check_range(wire, "top_p", 0, 1, above_least=True)
    _check_range(wire, "min_p", 0, 1)
    _check_range(wire, "presence_penalty", -2, 2)
    _check_range(wire, "frequency_penalty", -2, 2)
    _check_range(wire, "repetition_penalty", 0, 2, above_least=True)
    if wire.top_k < -1:
        raise InvalidRequestError("top_k must be at least -1", param="sampling.top_k")
    if len(wire.logit_bias) > MAX_LOGIT_BIAS_COUNT:
        raise InvalidRequestError(
            f"logit_bias takes at most {MAX_LOGIT_BIAS_COUNT} tokens", param="sampling.logit_bias"
        )
    _check_ids(wire.logit_bias, vocabulary_size, "sampling.logit_bias")
    if len(wire.allowed_token_ids) > MAX_ALLOWED_TOKEN_COUNT:
        raise InvalidRequestError(
            f"at most {MAX_ALLOWED_TOKEN_COUNT} tokens can be named", param="sampling.allowed_token_ids"
        )
    _check_ids(wire.allowed_token_ids, vocabulary_size, "sampling.allowed_token_ids")
    if any(not -100 <= bias <= 100 for bias in wire.logit_bias.values()):
        raise InvalidRequestError("a bias is a number from -100 to 100", param="sampling.logit_bias")


def _check_range(
    wire: pb.SamplingParameters, name: str, least: float, most: float, *, above_least: bool = False
) -> None:
    value: float = getattr(wire, name)
    if not wire.HasField(name):  # type: ignore[arg-type]
        return
    fits = math.isfinite(value) and least <= value <= most and not (above_least and value == least)
    if not fits:
        bound = f"above {least}, to {most}" if above_least else f"from {least} to {most}"
        raise InvalidRequestError(f"{name} must be {bound}, it is {value:g}", param=f"sampling.{name}")


def _choice_count(wire: pb.SamplingParameters) -> int:
    count = wire.choice_count if wire.HasField("choice_count") else 1
    if not 1 <= count <= MAX_CHOICE_COUNT:
        raise InvalidRequestError(
            f"the number of choices must be from 1 to {MAX_CHOICE_COUNT}, it is {count}",
            param="sampling.choice_count",
        )
    return count


def _top_logprobs(request: pb.GenerateRequest) -> int | None:
    if not request.HasField("top_logprobs"):
        return None
    if not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidRequestError(
            f"top_logprobs must be from 0 to {MAX_TOP_LOGPROBS}, it is {request.top_logprobs}",
            param="top_logprobs",
        )
    return request.top_logprobs


def _check_stopping(wire: pb.StoppingParameters, vocabulary_size: int) -> None:
    if wire.HasField("max_token_count") and wire.max_token_count < 1:
        raise InvalidRequestError(
            f"max_token_count must be at least 1, it is {wire.max_token_count}",
            param="stopping.max_token_count",
        )
    least = wire.min_token_count
    if least < 0 or (wire.HasField("max_token_count") and least > wire.max_token_count):
        raise InvalidRequestError(
            f"min_token_count must be from 0 to max_token_count, it is {least}",
            param="stopping.min_token_count",
        )
    _check_stop_strings(wire.stop_strings)
    if len(wire.stop_token_ids) > MAX_STOP_TOKEN_COUNT:
        raise InvalidRequestError(
            f"at most {MAX_STOP_TOKEN_COUNT} stop tokens", param="stopping.stop_token_ids"
        )
    _check_ids(wire.stop_token_ids, vocabulary_size, "stopping.stop_token_ids")


def _check_stop_strings(strings: Sequence[str]) -> None:
    if len(strings) > MAX_STOP_STRING_COUNT:
        raise InvalidRequestError(
            f"at most {MAX_STOP_STRING_COUNT} stop strings", param="stopping.stop_strings"
        )
    for index, text in enumerate(strings):
        if not 1 <= len(text) <= MAX_STOP_STRING_LENGTH:
            raise InvalidRequestError(
                f"a stop string has 1 to {MAX_STOP_STRING_LENGTH} characters",
                param=f"stopping.stop_strings[{index}]",
            )


def _check_ids(ids: Sequence[int] | Mapping[int, float], vocabulary_size: int, param: str) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocabulary_size:
            raise InvalidRequestError(
                f"token id {token_id} is not in the vocabulary of {vocabulary_size}", param=param
            )
