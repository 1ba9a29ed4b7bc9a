"""Chat messages to prompt text, with the checkpoint's own template.

Knows Jinja templates in the Hugging Face manner and the two kinds of content
that they take: plain strings, or lists of parts. Does not know tokens.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from shared.errors import InvalidRequestError
from shared.families.base import Modality

logger = logging.getLogger(__name__)

_COMMON_ROLES = frozenset({"system", "user", "assistant"})
_ROLE_FORM = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_PROBE = "percept probe"


@dataclass(frozen=True, slots=True)
class MediaMark:
    """The place of one item in a message."""

    modality: Modality


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message: a role, then texts and media in order."""

    role: str
    parts: tuple[str | MediaMark, ...]


def find_template(folder: Path, tokenizer: Any, file: str | None) -> str | None:
    """Returns a template's source: the given file's, or the checkpoint's, or None.

    Raises:
        InvalidRequestError: the given file cannot be read.
    """
    if file is not None:
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"--chat-template {file}: {error}") from error
    # The processor's template goes before the tokenizer's, as it knows media.
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        source: str = json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
        return source
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None


class ChatTemplate:
    """Renders conversations.

    Attributes:
        takes_parts: whether the template takes content as a list of parts.
    """

    def __init__(
        self,
        tokenizer: Any,
        source: str,
        placeholder_texts: Mapping[Modality, str],
        placeholder_tokens: Mapping[Modality, str],
    ) -> None:
        """Args:
        tokenizer: the Hugging Face tokenizer; its special tokens are the
            template's variables.
        source: the template.
        placeholder_texts: what stands for an item in plain text.
        placeholder_tokens: the token that must then be in the prompt.
        """
        self._tokenizer = tokenizer
        self._source = source
        self._placeholder_texts = placeholder_texts
        self.takes_parts = self._shows([{"type": "text", "text": _PROBE}], _PROBE)
        self._media_parts = frozenset(
            modality
            for modality, token in placeholder_tokens.items()
            if self.takes_parts and self._shows([{"type": modality}, {"type": "text", "text": _PROBE}], token)
        )

    def check_role(self, role: str, param: str) -> None:
        """Refuses a role that the template does not name.

        Raises:
            InvalidRequestError: with `param`.
        """
        named = f"'{role}'" in self._source or f'"{role}"' in self._source
        if role not in _COMMON_ROLES and not (_ROLE_FORM.fullmatch(role) and named):
            raise InvalidRequestError(f"the model's chat template knows no role {role[:64]!r}", param=param)

    def render(
        self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool, continue_final_message: bool
    ) -> str:
        """Returns the prompt's text.

        Raises:
            InvalidRequestError: the template refuses the messages.
        """
        conversation = [
            {"role": message.role, "content": self._content(message.parts)} for message in messages
        ]
        try:
            return self._apply(conversation, add_generation_prompt, continue_final_message)
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise InvalidRequestError(
                f"the model's chat template refuses the messages: {str(error)[:300]}", param="messages"
            ) from error

    def _apply(self, conversation: list[dict[str, Any]], open_turn: bool, continue_last: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                conversation,
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=open_turn,
                continue_final_message=continue_last,
            )
        )

    def _content(self, parts: Sequence[str | MediaMark]) -> str | list[dict[str, str]]:
        if not self.takes_parts:
            return "".join(self._as_text(part) for part in parts)
        return [self._as_part(part) for part in parts]

    def _as_part(self, part: str | MediaMark) -> dict[str, str]:
        if isinstance(part, MediaMark) and part.modality in self._media_parts:
            return {"type": part.modality}
        return {"type": "text", "text": self._as_text(part)}

    def _as_text(self, part: str | MediaMark) -> str:
        return self._placeholder_texts[part.modality] if isinstance(part, MediaMark) else part

    def _shows(self, content: list[dict[str, str]], wanted: str) -> bool:
        """Says whether a message of these parts is rendered, and not as Python's own text of a list."""
        try:
            rendered = self._apply([{"role": "user", "content": content}], True, False)
        except Exception as error:
            # A template may fail in any way on content that it was not written for.
            logger.debug("the chat template does not take %s: %s", content, error)
            return False
        return wanted in rendered and "'type'" not in rendered and '"type"' not in rendered
