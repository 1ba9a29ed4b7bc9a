"""How tokens are chosen and when to stop, as scripts write it.

The names are those that vLLM users know. Knows how they map to the wire; checks
nothing: the LLM service does, and its errors come back with these names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protos.llm.v1 import llm_service_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling and stopping of one prompt.

    What is None takes the checkpoint's generation config, and Percept's default where that is silent.

    Attributes:
        n: choices, 1 to 64.
        temperature: 0 is greedy; 0 to 2.
        top_p: nucleus mass; above 0, to 1.
        top_k: 0 or -1 for all tokens.
        min_p: least probability relative to the likeliest; 0 to 1.
        seed: makes the choice repeatable; choice i uses seed + i.
        presence_penalty: -2 to 2.
        frequency_penalty: -2 to 2.
        repetition_penalty: above 0, to 2.
        logit_bias: token id to bias, -100 to 100.
        allowed_token_ids: the only tokens that may be chosen; all where none is named.
        max_tokens: most tokens to generate; None for what the context leaves.
        min_tokens: fewest tokens before the end.
        stop: strings that end the text.
        stop_token_ids: tokens that end it.
        ignore_eos: go on after the end-of-sequence token.
        include_stop_str_in_output: keep the matched stop string.
        logprobs: log probabilities of the tokens with so many alternatives each, 0 to 20; None for none.
    """

    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: Sequence[int] = ()
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None

    def sampling_to_wire(self) -> llm_service_pb2.SamplingParameters:
        """The wire's sampling."""
        return llm_service_pb2.SamplingParameters(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=dict(self.logit_bias),
            allowed_token_ids=list(self.allowed_token_ids),
            choice_count=self.n,
        )

    def stopping_to_wire(self) -> llm_service_pb2.StoppingParameters:
        """The wire's stopping."""
        return llm_service_pb2.StoppingParameters(
            max_token_count=self.max_tokens,
            min_token_count=self.min_tokens,
            stop_strings=[self.stop] if isinstance(self.stop, str) else list(self.stop),
            stop_token_ids=list(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            include_stop_string=self.include_stop_str_in_output,
        )


_NAMES = {
    "choice_count": "n",
    "max_token_count": "max_tokens",
    "min_token_count": "min_tokens",
    "stop_strings": "stop",
    "include_stop_string": "include_stop_str_in_output",
    "top_logprobs": "logprobs",
}


def sampling_name(path: str) -> str:
    """Our name for a field of the wire that an error names, for example "max_tokens"."""
    name, bracket, rest = path.removeprefix("sampling.").removeprefix("stopping.").partition("[")
    return _NAMES.get(name, name) + bracket + rest
