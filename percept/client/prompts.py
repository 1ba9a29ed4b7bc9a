"""Prompts as vLLM's scripts write them, to the LLM service's request.

Knows text, token ids and `multi_modal_data`. Does not know messages.
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
"""Text; or {"prompt": text} or {"prompt_token_ids": ids}, with "multi_modal_data", "mm_processor_kwargs"."""

_MODALITIES: tuple[Modality, ...] = ("image", "video", "audio")
# Caches here go by content, so names for media change nothing.
_HINTS = frozenset({"multi_modal_uuids"})
_SETTINGS = frozenset({"mm_processor_kwargs", "media_io_kwargs"})
_KEYS = frozenset({"prompt", "prompt_token_ids", "multi_modal_data"}) | _SETTINGS | _HINTS


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
    given: Mapping[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else prompt
    if not isinstance(given, Mapping):
        raise InvalidRequestError(
            f"a prompt is text or a mapping; it is a {type(prompt).__name__}", param="prompt"
        )
    for name in given:
        if name not in _KEYS:
            raise InvalidRequestError(
                f"a prompt has no {name!r}; it takes {', '.join(sorted(_KEYS))}", param=str(name)
            )
    items = _items(given)
    request = new_request(sampling, model)
    _set_prompt(request, given)
    request.media.extend(item.wire for item in items)
    return request, items


def _set_prompt(request: llm_service_pb2.GenerateRequest, given: Mapping[str, Any]) -> None:
    text, ids = given.get("prompt"), given.get("prompt_token_ids")
    if ids is not None:
        request.token_ids.ids.extend(int(token_id) for token_id in ids)
        request.token_ids.SetInParent()
    elif isinstance(text, str):
        request.text = text
    else:
        raise InvalidRequestError('a prompt needs "prompt" (text) or "prompt_token_ids"', param="prompt")


def _items(given: Mapping[str, Any]) -> list[Item]:
    data = given.get("multi_modal_data") or {}
    if not isinstance(data, Mapping):
        raise InvalidRequestError("multi_modal_data is a mapping", param="multi_modal_data")
    for name in data:
        if name not in _MODALITIES:
            raise InvalidRequestError(
                f"multi_modal_data has no {name!r}; it takes {', '.join(_MODALITIES)}",
                param=f"multi_modal_data.{name}",
            )
    settings = ItemSettings(given.get("mm_processor_kwargs"), given.get("media_io_kwargs"))
    return [
        item
        for modality in _MODALITIES
        if data.get(modality) is not None
        for item in items_of(data[modality], modality, settings[modality], f"multi_modal_data.{modality}")
    ]
