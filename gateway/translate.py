"""A chat completion request to the wire contract. Pure: no I/O, no state.

Knows both vocabularies. Does not know how media is resolved or who answers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.content import MediaPart, Part, TextPart, parse_content
from gateway.generation_request import GenerationRequest
from gateway.media import ResolvedItem
from gateway.schemas import ChatCompletionRequest, ChatMessage
from protos.llm.v1 import llm_service_pb2
from shared.errors import ContextLengthError, InvalidRequestError, UnsupportedMediaError
from shared.settings import ModalityName

# gRPC's own limit on a message, less what its fields other than text may take.
_MAX_MESSAGE_BYTE_COUNT = 4 * 1024 * 1024 - 1024

# The developer's instructions are what earlier models call the system's; chat
# templates know the older name only.
_TEMPLATE_ROLES = {"developer": "system"}

COMMON_NAMES: Mapping[str, str] = {
    "min_token_count": "min_tokens",
    "stop_strings": "stop",
    "choice_count": "n",
    "include_stop_string": "include_stop_str_in_output",
}
"""What requests call fields that the LLM service may refuse."""

CHAT_NAMES: Mapping[str, str] = {
    **COMMON_NAMES,
    "max_token_count": "max_completion_tokens",
    "conversation": "messages",
    "prompt": "messages",
    "media": "messages",
}
"""What a chat completion request calls fields of the wire."""
# What a push of embeddings may be refused for: nothing that a request has.
_PUSH_FIELDS = frozenset({"header", "chunk", "frame"})


# Characters of a prompt that name it, where no message does.
_HEAD_LENGTH = 512
_MEDIA_PLACE = re.compile(r"media\[([0-9]{1,4})\]")


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One message with its parts."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation and, in order of appearance, the media in it."""

    messages: tuple[PromptMessage, ...]
    media: tuple[MediaPart, ...]


def to_prompt(request: ChatCompletionRequest) -> Prompt:
    """Reads the messages of a request.

    Raises:
        InvalidRequestError: content of a wrong form; its path is the param.
    """
    messages = tuple(_to_message(message, index) for index, message in enumerate(request.messages))
    media = tuple(part for message in messages for part in message.parts if not isinstance(part, TextPart))
    return Prompt(messages, media)


def _to_message(message: ChatMessage, index: int) -> PromptMessage:
    param = f"messages[{index}].content"
    content = message.content
    if content is None and message.role == "assistant":
        content = message.refusal
    if content is None:
        raise InvalidRequestError(
            f"Invalid value for '{param}': expected a string or a list of parts, got null.", param=param
        )
    role = _TEMPLATE_ROLES.get(message.role, message.role)
    return PromptMessage(role, tuple(parse_content(content, param)))


def check_items(
    media: Sequence[MediaPart], limits: Mapping[ModalityName, int], names: Mapping[str, str]
) -> None:
    """Refuses modalities that the model lacks, and more items of one than a prompt may hold.

    Args:
        limits: items of each modality that the model takes.
        names: where in the request all items of a modality are, by modality, where they are together.

    Raises:
        InvalidRequestError: there are such.
    """
    for part in media:
        if part.modality not in limits:
            raise InvalidRequestError(
                f"The model takes no {part.modality} parts; it takes: {', '.join(['text', *limits])}.",
                param=part.param,
                code=UnsupportedMediaError.default_code,
            )
    for modality, limit in limits.items():
        if sum(part.modality == modality for part in media) > limit:
            raise InvalidRequestError(
                f"At most {limit} {modality}(s) may be provided in one prompt.",
                param=names.get(modality, modality),
                code=f"too_many_{modality}s",
            )


def to_generate_request(
    request: ChatCompletionRequest,
    prompt: Prompt,
    items: Sequence[ResolvedItem],
    *,
    request_id: str,
    max_model_len: int,
) -> llm_service_pb2.GenerateRequest:
    """Builds the LLM service's request.

    Raises:
        ContextLengthError: the text is so long that no message could carry it.
    """
    message = llm_service_pb2.GenerateRequest(
        request_id=request_id,
        conversation=_to_conversation(request, prompt),
        media=[item.item for item in items],
        sampling=to_sampling(request),
        stopping=to_stopping(request),
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        deltas_may_wait=not request.stream,
    )
    return checked_size(message, max_model_len, "messages")


def checked_size(
    message: llm_service_pb2.GenerateRequest, max_model_len: int, param: str
) -> llm_service_pb2.GenerateRequest:
    """Returns the message.

    Args:
        param: what of the request is to blame for its size.

    Raises:
        ContextLengthError: it is larger than any message may be.
    """
    if message.ByteSize() > _MAX_MESSAGE_BYTE_COUNT:
        raise ContextLengthError(
            f"This model's maximum context length is {max_model_len} tokens. However, your {param} have "
            f"{message.ByteSize()} bytes of text.",
            param=param,
        )
    return message


def affinity(request: llm_service_pb2.GenerateRequest) -> str:
    """Names a conversation: equal for every turn of one, so that a turn finds the
    prefix that the turn before left in a replica's cache. A prompt is named by how it begins."""
    digest = hashlib.sha256()
    if not request.HasField("conversation"):
        head = request.text[:_HEAD_LENGTH], request.token_ids.ids[: _HEAD_LENGTH // 4]
        digest.update(repr((*(item.key for item in request.media[:1]), *head)).encode())
        return digest.hexdigest()
    for message in request.conversation.messages:
        for part in message.parts:
            is_text = part.HasField("text")
            content = part.text if is_text else request.media[part.media_index].key
            digest.update(f"{message.role} {is_text} {len(content)} {content}".encode())
        if message.role == "user":
            break
    return digest.hexdigest()


def _to_conversation(request: ChatCompletionRequest, prompt: Prompt) -> llm_service_pb2.Conversation:
    conversation = llm_service_pb2.Conversation(continue_final_message=bool(request.continue_final_message))
    if request.add_generation_prompt is not None:
        conversation.add_generation_prompt = request.add_generation_prompt
    elif request.continue_final_message:
        conversation.add_generation_prompt = False
    media_count = 0
    for message in prompt.messages:
        target = conversation.messages.add(role=message.role)
        for part in message.parts:
            if isinstance(part, TextPart):
                target.parts.add(text=part.text)
            else:
                target.parts.add(media_index=media_count)
                media_count += 1
    return conversation


def to_sampling(request: GenerationRequest) -> llm_service_pb2.SamplingParameters:
    """How tokens are chosen."""
    return llm_service_pb2.SamplingParameters(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        choice_count=request.n,
    )


def to_stopping(request: GenerationRequest) -> llm_service_pb2.StoppingParameters:
    """When an answer ends."""
    return llm_service_pb2.StoppingParameters(
        max_token_count=request.max_token_count,
        min_token_count=request.min_tokens or 0,
        stop_strings=request.stop or [],
        stop_token_ids=request.stop_token_ids or [],
        ignore_eos=bool(request.ignore_eos),
        include_stop_string=bool(request.include_stop_str_in_output),
    )


def to_request_param(
    param: str | None, items: Sequence[ResolvedItem], names: Mapping[str, str]
) -> str | None:
    """Turns a field path of the wire contract into the request's own name for it.

    Args:
        names: the request's own names for fields that the wire calls otherwise.
    """
    if param is None:
        return None
    place = _MEDIA_PLACE.match(param)
    if place is not None and int(place[1]) < len(items):
        return items[int(place[1])].param
    path = param.removeprefix("sampling.").removeprefix("stopping.").removeprefix("conversation.")
    name, bracket, rest = path.partition("[")
    if name.partition(".")[0] in _PUSH_FIELDS:
        return None
    return names.get(name, name) + bracket + rest
