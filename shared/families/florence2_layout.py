"""Florence-2's prompts: a picture's rows and a task's words in front, where the text encoder reads both.

The text encoder lets rows and words see each other, so they are one whole that no step may
cut, and what is kept of a picture depends on the words: prompts of other words share nothing.
They take whole blocks, so that whoever asks the same of the same picture computes none of it
again. Behind them stands the decoder's prompt, which is the same for all.

Knows tokens and the rules of answers. Does not know weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.errors import ContextLengthError, InvalidRequestError
from shared.families.base import Checkpoint, ExpandedPrompt, MediaInfo, Modality, Span
from shared.families.florence2_answers import is_text, read_answer, task_in, written_out
from shared.families.florence2_original import ADDED_TOKENS, LEFT_OUT, is_original
from shared.families.looking import padding_behind
from shared.families.token_rules import TokenRules

PLACEHOLDER = "<image>"
BEGIN, END = "<s>", "</s>"
HIDDEN = frozenset({BEGIN, END, "<pad>", "<unk>", "<mask>", PLACEHOLDER})
"""The special tokens that are no part of an answer. All others are places and marks of shapes."""

ROW_MULTIPLE = 32
"""Block sizes that divide it have no block with a front and an answer."""

TEMPLATE = (
    "{%- set said = namespace(text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{%- set said.text = '' -%}{%- endif -%}"
    "{%- if message['content'] is string -%}"
    "{%- if message['role'] == 'user' -%}{%- set said.text = message['content'] -%}{%- endif -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    f"{{%- if part['type'] == 'image' -%}}{PLACEHOLDER}"
    "{%- elif message['role'] == 'user' -%}{%- set said.text = said.text ~ ' ' ~ part['text'] -%}"
    "{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endfor -%}"
    "{{ said.text | trim }}"
)
"""The last user message's text is the prompt: the model knows no conversation."""


@dataclass(frozen=True, slots=True)
class Florence2Layout:
    """See `TakesTasks`.

    Attributes:
        image_id: stands for rows of a picture.
        padding_id: stands for what holds nothing.
        start_ids: the decoder's prompt.
        position_count: positions that the encoder has, and the decoder.
        end_id: the token that an answer as long as it may be ends with; None: any.
        run_length: see `TokenRules`.
        left_out: names that grounding passes over; see `read_answer`.
        added_tokens: see `TakesTasks`.
    """

    image_id: int
    padding_id: int
    start_ids: tuple[int, ...]
    position_count: int
    end_id: int | None
    run_length: int
    left_out: frozenset[str]
    added_tokens: tuple[str, ...] = ()
    chat_template: str = TEMPLATE

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: Any) -> Florence2Layout:
        """Reads a checkpoint's generation config, and its config where that is silent.

        Args:
            config: of the whole model, in transformers' words.

        Raises:
            InvalidRequestError: neither says how an answer begins.
        """
        text = checkpoint.config.get("text_config") or {}
        found = {**text, **checkpoint.config, **checkpoint.generation_config}
        start, begin = found.get("decoder_start_token_id"), found.get("forced_bos_token_id")
        if not isinstance(start, int):
            raise InvalidRequestError(f"{checkpoint.folder} names no decoder_start_token_id")
        return cls(
            image_id=int(config.image_token_id),
            padding_id=int(config.text_config.pad_token_id),
            start_ids=(start,) if begin is None else (start, int(begin)),
            position_count=int(config.text_config.max_position_embeddings),
            end_id=found.get("forced_eos_token_id"),
            run_length=int(found.get("no_repeat_ngram_size") or 0),
            left_out=frozenset(_left_out(checkpoint)),
            added_tokens=(*ADDED_TOKENS, PLACEHOLDER) if is_original(checkpoint) else (),
        )

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return {"image": self.image_id}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        assert modality == "image", modality
        return PLACEHOLDER

    def shows(self, special_token: str) -> bool:
        """See `TakesTasks`."""
        return special_token not in HIDDEN

    def written(self, text: str) -> str:
        """See `TakesTasks`. An empty prompt is one too: transformers' processor writes the marks alone."""
        if (count := text.count(PLACEHOLDER)) > 1:
            raise InvalidRequestError(
                f"the prompt has {count} placeholders ({PLACEHOLDER}): a prompt of this model has one"
                " picture, and need not say where",
                param="prompt",
            )
        return f"{PLACEHOLDER}{BEGIN}{written_out(_words(text))}{END}"

    def task(self, text: str) -> str:
        """See `TakesTasks`."""
        return task_in(_words(text)) or ""

    def joined(self, encoder_ids: Sequence[int], decoder_ids: Sequence[int]) -> list[int]:
        """See `TakesEncoderPrompt`. The decoder's need not hold what every answer begins with.

        Raises:
            InvalidRequestError: the encoder's holds padding, which is what parts the two.
        """
        if self.padding_id in encoder_ids:
            raise InvalidRequestError(
                "an encoder prompt of this model has no padding tokens", param="encoder_prompt"
            )
        return [self.image_id, *encoder_ids, self.padding_id, *decoder_ids]

    def rules(self, token_ids: Sequence[int]) -> TokenRules:
        """See `TakesTasks`. What the decoder's prompt holds counts among runs of tokens."""
        begun = len(self._apart(token_ids)[1])
        return TokenRules(run_length=self.run_length, begun=begun, last_id=self.end_id)

    def read(self, answer: str, task: str, info: MediaInfo) -> dict[str, Any] | None:
        """See `TakesTasks`."""
        if info.image_size is None:
            return read_answer(answer, task, (1, 1)) if is_text(task) else None
        height, width = info.image_size
        return read_answer(answer, task, (width, height), self.left_out)

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens); the decoder's count from 0.

        Without an item, `token_ids` are the decoder's prompt.

        Raises:
            InvalidRequestError: several items.
            ContextLengthError: more than the text encoder has positions for.
        """
        if not media:
            return ExpandedPrompt(
                list(token_ids), [], np.arange(len(token_ids), dtype=np.int64)[np.newaxis], len(token_ids)
            )
        if len(media) > 1:
            raise InvalidRequestError("a prompt of this model has one picture", param="media")
        words, begun = self._apart(token_ids)
        rows = media[0].row_count
        front = rows + len(words)
        if max(front, len(begun) + 1) > self.position_count:
            raise ContextLengthError(
                f"This model's text encoder reads {self.position_count} tokens, and its decoder as many; the "
                f"picture and the prompt have {front}, the answer's beginning has {len(begun)}. Please "
                "shorten the prompt.",
                param="prompt",
            )
        padding = padding_behind(front, ROW_MULTIPLE)
        places = np.arange(len(begun), dtype=np.int64)
        return ExpandedPrompt(
            [self.image_id] * rows + words + [self.padding_id] * padding + begun,
            [Span(0, 0, rows, splittable=False, tail=len(words))],
            np.concatenate([np.zeros(front + padding, np.int64), places])[np.newaxis],
            len(begun),
            variant=hashlib.sha256(np.asarray(words, "<i4").tobytes()).hexdigest(),
            most_new=self.position_count - len(begun),
        )

    def _apart(self, token_ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The words that the encoder reads, and the decoder's prompt; see `joined`."""
        ids = [token_id for token_id in token_ids if token_id != self.image_id]
        place = ids.index(self.padding_id) if self.padding_id in ids else len(ids)
        words, given = ids[:place], ids[place + 1 :]
        start = list(self.start_ids)
        return words, given if given[: len(start)] == start else start + given


def _words(text: str) -> str:
    return text.replace(PLACEHOLDER, "").strip()


def _left_out(checkpoint: Checkpoint) -> list[str]:
    """The checkpoint's `banned_grounding_tokens`; none where it names none."""
    if is_original(checkpoint):
        return list(LEFT_OUT)
    file = checkpoint.folder / "processor_config.json"
    if not file.is_file():
        return []
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        grounding = (settings.get("post_processor_config") or {}).get("phrase_grounding") or {}
        return [str(name) for name in grounding.get("banned_grounding_tokens") or []]
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidRequestError(f"{file} is not valid: {error}") from error
