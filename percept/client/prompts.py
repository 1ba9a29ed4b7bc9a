"""Prompts as vLLM's scripts write them, to the LLM service's request.

Knows text, token ids, `multi_modal_data`, and the two prompts of encoder-decoder models. Does not
know messages.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, TypeAlias

from percept.client.items import Item, ItemSettings
from percept.client.media import items_of
from percept.client.sampling import SamplingParams
from protos.llm.v1 import llm_service_pb2
from shared.errors import InvalidRequestError
from shared.families.catalogue import Modality

Prompt: TypeAlias = str | Mapping[str, Any]
"""Text; or {"prompt": text} or {"prompt_token_ids": ids}, with "multi_modal_data", "mm_processor_kwargs";
or {"encoder_prompt": PROMPT, "decoder_prompt": PROMPT}, the first of them with the media."""

_MODALITIES: tuple[Modality, ...] = ("image", "video", "audio")
# Caches here go by content, so names for media change nothing.
_HINTS = frozenset({"multi_modal_uuids"})
_SETTINGS = frozenset({"mm_processor_kwargs", "media_io_kwargs"})
_TEXTS = frozenset({"prompt", "prompt_token_ids"})
_KEYS = _TEXTS | {"multi_modal_data"} | _SETTINGS | _HINTS
_TWO = ("encoder_prompt", "decoder_prompt")


def new_request(sampling: SamplingParams, model: str) -> llm_service_pb2.GenerateRequest:
    """A request without its prompt."""
    return llm_service_pb2.GenerateRequest(
        model=model,
        request_id=uuid.uuid4().hex,
        sampling=sampling.sampling_to_wire(),
        stopping=sampling.stopping_to_wire(),
        top_logprobs=sampling.logprobs,
    )


def build_prompt(
    prompt: Prompt, sampling: SamplingParams, model: str
) -> tuple[llm_service_pb2.GenerateRequest, list[Item]]:
    """The request for a prompt, and its media. Reads files and encodes pictures: not for an event loop.

    Raises:
        PerceptError: the prompt or one of its media has no proper form.
    """
    request = new_request(sampling, model)
    items = _set_two(request, prompt) if _are_two(prompt) else _set_one(request, prompt)
    request.media.extend(item.wire for item in items)
    return request, items


def _are_two(prompt: object) -> bool:
    return isinstance(prompt, Mapping) and any(name in prompt for name in _TWO)


def _set_one(request: llm_service_pb2.GenerateRequest, prompt: Prompt) -> list[Item]:
    given = _mapping(prompt, _KEYS, "prompt")
    items = _items(given)
    _set_prompt(request, given, "prompt")
    return items


def _set_two(request: llm_service_pb2.GenerateRequest, prompt: Prompt) -> list[Item]:
    """Sets an encoder's and a decoder's prompt; what is not said of them is empty."""
    two = _mapping(prompt, frozenset(_TWO) | _SETTINGS, "prompt")
    encoder = {"prompt": "", **_mapping(two.get(_TWO[0]) or "", _KEYS, _TWO[0])}
    decoder = {"prompt": "", **_mapping(two.get(_TWO[1]) or "", _TEXTS, _TWO[1])}
    items = _items({name: two[name] for name in _SETTINGS if name in two} | encoder, f"{_TWO[0]}.")
    _set_prompt(request.encoder_prompt, encoder, _TWO[0])
    _set_prompt(request, decoder, _TWO[1])
    return items


def _mapping(prompt: object, known: frozenset[str], param: str) -> Mapping[str, Any]:
    given = {"prompt": prompt} if isinstance(prompt, str) else prompt
    if not isinstance(given, Mapping):
        raise InvalidRequestError(
            f"a prompt is text or a mapping; it is a {type(prompt).__name__}", param=param
        )
    for name in given:
        if name not in known:
            raise InvalidRequestError(
                f"a prompt has no {name!r}; it takes {', '.join(sorted(known))}", param=str(name)
            )
    return given


def _set_prompt(
    target: llm_service_pb2.GenerateRequest | llm_service_pb2.RawPrompt, given: Mapping[str, Any], param: str
) -> None:
    text, ids = given.get("prompt"), given.get("prompt_token_ids")
    if ids is not None:
        target.token_ids.ids.extend(int(token_id) for token_id in ids)
        target.token_ids.SetInParent()
    elif isinstance(text, str):
        target.text = text
    else:
        raise InvalidRequestError('a prompt needs "prompt" (text) or "prompt_token_ids"', param=param)


def _items(given: Mapping[str, Any], prefix: str = "") -> list[Item]:
    """Args:
    prefix: of the media's path, for errors.
    """
    data, path = given.get("multi_modal_data") or {}, f"{prefix}multi_modal_data"
    if not isinstance(data, Mapping):
        raise InvalidRequestError("multi_modal_data is a mapping", param=path)
    for name in data:
        if name not in _MODALITIES:
            raise InvalidRequestError(
                f"multi_modal_data has no {name!r}; it takes {', '.join(_MODALITIES)}",
                param=f"{path}.{name}",
            )
    settings = ItemSettings(given.get("mm_processor_kwargs"), given.get("media_io_kwargs"))
    return [
        item
        for modality in _MODALITIES
        if data.get(modality) is not None
        for item in items_of(data[modality], modality, settings[modality], f"{path}.{modality}")
    ]
