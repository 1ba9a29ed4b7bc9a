"""Conversations as they come off the wire: their parts in order, their end, typed special tokens.

Knows the wire's messages. Does not know templates, tokens or how many rows an item has.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, islice

from llm_service.chat_template import ChatMessage, MediaMark
from llm_service.special_tokens import SpecialTokenGuard
from protos.llm.v1 import llm_service_pb2 as pb
from shared.errors import InvalidRequestError
from shared.families.base import Modality


def turn_end(conversation: pb.Conversation) -> tuple[bool, bool]:
    """Whether to open the assistant's turn, and whether to continue the last message."""
    continue_last = conversation.continue_final_message
    if not continue_last:
        given = conversation.HasField("add_generation_prompt")
        return conversation.add_generation_prompt if given else True, False
    if conversation.HasField("add_generation_prompt") and conversation.add_generation_prompt:
        raise InvalidRequestError(
            "add_generation_prompt and continue_final_message exclude each other",
            param="continue_final_message",
        )
    return False, True


def media_indexes(conversation: pb.Conversation) -> list[int]:
    """The items that the messages refer to: 0, 1, 2, ... in order of appearance.

    Raises:
        InvalidRequestError: a part is empty, or an index is out of order.
    """
    indexes: list[int] = []
    for i, message in enumerate(conversation.messages):
        for j, part in enumerate(message.parts):
            kind = part.WhichOneof("part")
            param = f"messages[{i}].content[{j}]"
            if kind is None:
                raise InvalidRequestError("a content part is text or refers to an item", param=param)
            if kind == "media_index":
                if part.media_index != len(indexes):
                    raise InvalidRequestError(
                        f"media_index must be {len(indexes)} here, it is {part.media_index}", param=param
                    )
                indexes.append(part.media_index)
    return indexes


def message_part(part: pb.ContentPart, modalities: Sequence[Modality]) -> str | MediaMark:
    """A part as chat templates take it: text, or the place of an item."""
    if part.WhichOneof("part") == "text":
        return part.text
    return MediaMark(modalities[part.media_index])


def protected(messages: Sequence[ChatMessage], guard: SpecialTokenGuard) -> list[ChatMessage]:
    """The messages, with no special token whole that was typed in them."""
    parts: list[str | MediaMark] = []
    for _, run in groupby((part for message in messages for part in message.parts), type):
        same = list(run)
        # Together, as a template may write texts side by side, those of two messages too.
        parts += guard.protect_all([part for part in same if isinstance(part, str)]) or same
    rest = iter(parts)
    return [ChatMessage(message.role, tuple(islice(rest, len(message.parts)))) for message in messages]
