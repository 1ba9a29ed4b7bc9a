"""The fields of a request for text that are not worked with.

Some cannot change the answer: they are accepted. Some would change it and are
not supported: only the value that asks for nothing is accepted. Every other
name is unknown. Knows names and neutral values; does not know what the supported
fields mean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from shared.errors import InvalidRequestError

INERT = frozenset(
    {
        # Who asks, why, and where it is stored or billed.
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "session_id",
        # Hints to caches: ours go by content.
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        # About tools and reasoning, which no answer of ours has.
        "parallel_tool_calls",
        "include_reasoning",
        # About how special tokens are written (they never are) and how prompts
        # are cut (they never are).
        "spaces_between_special_tokens",
        "truncation_side",
        # How many tokens travel in one event.
        "stream_interval",
    }
)
"""Accepted with any value."""


def _is_nothing(value: object) -> bool:
    return value is None or value is False or value in ([], {})


def _one_of(*values: object) -> Callable[[object], bool]:
    def is_neutral(value: object) -> bool:
        return value is None or any(value == known and type(value) is type(known) for known in values)

    return is_neutral


def _is_text_format(value: object) -> bool:
    return value is None or value == {"type": "text"}


Refused: TypeAlias = Mapping[str, Callable[[object], bool]]
"""Names, and which of their values ask for nothing."""

REFUSED: Refused = {
    "tools": _is_nothing,
    "tool_choice": _one_of("none", "auto"),
    "functions": _is_nothing,
    "function_call": _one_of("none", "auto"),
    "response_format": _is_text_format,
    "structured_outputs": _is_nothing,
    "guided_json": _is_nothing,
    "guided_regex": _is_nothing,
    "guided_choice": _is_nothing,
    "guided_grammar": _is_nothing,
    "modalities": _one_of(["text"]),
    "audio": _is_nothing,
    "prediction": _is_nothing,
    "web_search_options": _is_nothing,
    "moderation": _is_nothing,
    "reasoning_effort": _one_of("none"),
    "verbosity": _one_of("medium"),
    "thinking_token_budget": _is_nothing,
    "prompt_logprobs": _is_nothing,
    "logprob_token_ids": _is_nothing,
    "allowed_token_ids": _is_nothing,
    "bad_words": _is_nothing,
    "use_beam_search": _is_nothing,
    "best_of": _one_of(1),
    "length_penalty": _one_of(1, 1.0),
    "early_stopping": _is_nothing,
    "skip_special_tokens": _one_of(True),
    "truncate_prompt_tokens": _is_nothing,
    "echo": _is_nothing,
    "add_special_tokens": _is_nothing,
    "documents": _is_nothing,
    "chat_template": _is_nothing,
    "chat_template_kwargs": _is_nothing,
    "priority": _one_of(0),
    # A promise to keep caches apart: accepting it without doing so would break it.
    "cache_salt": _is_nothing,
    "return_token_ids": _is_nothing,
    "return_tokens_as_token_ids": _is_nothing,
    "kv_transfer_params": _is_nothing,
    "ec_transfer_params": _is_nothing,
    "vllm_xargs": _is_nothing,
    "repetition_detection": _is_nothing,
}
"""Of a chat completion: accepted only with a value that asks for nothing."""


COMPLETION_REFUSED: Refused = {
    **{name: neutral for name, neutral in REFUSED.items() if name not in ("best_of", "echo")},
    "suffix": _one_of(""),
    "prompt_embeds": _is_nothing,
    "add_special_tokens": _one_of(True),
}
"""Of a completion likewise."""


def take_supported(
    body: dict[str, Any], supported: Collection[str], refused: Refused = REFUSED
) -> dict[str, Any]:
    """Returns the fields of a body that are worked with.

    Raises:
        InvalidRequestError: a field is unknown, or asks for what is not supported.
    """
    for name, value in body.items():
        if name in supported or name in INERT:
            continue
        is_neutral = refused.get(name)
        if is_neutral is None:
            name = name[:64]
            text = f"Unrecognized request argument supplied: {name}"
            raise InvalidRequestError(text, param=name, code="unknown_parameter")
        if not is_neutral(value):
            raise InvalidRequestError(
                f"Unsupported parameter: '{name}' cannot have this value here; leave it out.",
                param=name,
                code="unsupported_parameter",
            )
    return {name: value for name, value in body.items() if name in supported}
