"""Whisper's prompts: a recording's states in front, then what was said before, language, task and times.

The states take whole blocks, so that nobody who asks about the same recording computes keys
of it again. Knows tokens and the rules of answers. Does not know weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.errors import InvalidRequestError
from shared.families.alignment import ROW_SECONDS, Alignment, mistake_about_heads
from shared.families.base import Checkpoint, ExpandedPrompt, MediaInfo, Modality, Span
from shared.families.encoder_prompts import check_reads_no_text
from shared.families.looking import padding_behind
from shared.families.token_rules import SpeechTask, TimestampRule, TokenRules

logger = logging.getLogger(__name__)

PLACEHOLDER = "<|audio|>"
START, PREVIOUS, WITHOUT_TIMES = "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"
TRANSCRIBE, TRANSLATE = "transcribe", "translate"

ROW_MULTIPLE = 32
"""Block sizes that divide it have no block with a recording's rows and text."""

TEMPLATE = (
    "{%- set said = namespace(text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set said.text = said.text ~ ' ' ~ message['content'] -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{%- set said.text = said.text ~ ' ' ~ part['text'] -%}"
    f"{{%- else -%}}{PLACEHOLDER}{{%- endif -%}}"
    "{%- endfor -%}{%- endif -%}{%- endfor -%}"
    f"{{%- if said.text | trim -%}}{PREVIOUS} {{{{ said.text | trim }}}}{{%- endif -%}}{START}"
)
"""All text of a conversation is what was said before."""


@dataclass(frozen=True, slots=True)
class WhisperLayout:
    """See `WritesSpeech` and `NamesTokens`.

    Attributes:
        vocabulary_size: tokens; the one behind them stands for rows of a recording.
        start_id: begins the model's turn.
        previous_id: begins what was said before; None where the checkpoint does not tell.
        language_ids: of each language's token, by its text ("<|en|>"); none in a model of one language.
        task_ids: by `TRANSCRIBE` and `TRANSLATE`.
        without_times_id: says that no times are written; None where the checkpoint does not tell.
        end_id: ends an answer.
        suppressed: never chosen.
        first_suppressed: not chosen as an answer's first token.
        most_initial: see `TimestampRule`.
        tells_times: see `WritesSpeech`.
        most_previous: tokens of what was said before, its mark included, that the model was trained with.
    """

    vocabulary_size: int
    start_id: int
    previous_id: int | None
    language_ids: Mapping[str, int]
    task_ids: Mapping[str, int]
    without_times_id: int | None
    end_id: int
    suppressed: tuple[int, ...]
    first_suppressed: tuple[int, ...]
    most_initial: int | None
    most_previous: int
    tells_times: bool = False
    chat_template: str = TEMPLATE

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: Any) -> WhisperLayout:
        """Reads a checkpoint's generation config, and its config where that is silent.

        Args:
            config: the whole model's.

        Raises:
            InvalidRequestError: neither says how an answer begins or ends.
        """
        found = {**checkpoint.config, **checkpoint.generation_config}
        start, end = found.get("decoder_start_token_id"), found.get("eos_token_id")
        end = end[0] if isinstance(end, list) and end else end
        if not isinstance(start, int) or not isinstance(end, int):
            raise InvalidRequestError(
                f"{checkpoint.folder} names no decoder_start_token_id or no eos_token_id"
            )
        if (mistake := mistake_about_heads(checkpoint, config)) is not None:
            logger.warning("%s: %s; times of words are refused", checkpoint.folder, mistake)
        multilingual = bool(found.get("is_multilingual", True)) and {"lang_to_id", "task_to_id"} <= set(found)
        return cls(
            vocabulary_size=int(config.vocab_size),
            start_id=start,
            previous_id=found.get("prev_sot_token_id"),
            language_ids=dict(found.get("lang_to_id") or {}) if multilingual else {},
            task_ids=dict(found.get("task_to_id") or {}) if multilingual else {},
            without_times_id=found.get("no_timestamps_token_id"),
            end_id=end,
            suppressed=tuple(found.get("suppress_tokens") or ()),
            first_suppressed=tuple(found.get("begin_suppress_tokens") or ()),
            most_initial=found.get("max_initial_timestamp_index"),
            most_previous=int(config.max_target_positions) // 2,
            tells_times=Alignment.of(checkpoint, config) is not None,
        )

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`. None: the vocabulary has no token for a recording."""
        return {}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        assert modality == "audio", modality
        return PLACEHOLDER

    def named_tokens(self) -> Mapping[str, int]:
        """See `NamesTokens`."""
        tasks = {f"<|{name}|>": token_id for name, token_id in self.task_ids.items()}
        marks = {START: self.start_id, PREVIOUS: self.previous_id, WITHOUT_TIMES: self.without_times_id}
        known = {text: token_id for text, token_id in marks.items() if token_id is not None}
        return {**known, **self.language_ids, **tasks}

    def item_text(self, modality: Modality, info: MediaInfo) -> str:
        """See `WritesItems`. Nothing: a recording stands in front of the prompt."""
        return ""

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens); text counts from 0, whatever is in front."""
        if len(media) > 1:
            raise InvalidRequestError("a prompt of this model has one recording", param="media")
        rows = media[0].row_count if media else 0
        ahead = rows + padding_behind(rows, ROW_MULTIPLE)
        text = np.arange(len(token_ids), dtype=np.int64)
        positions = np.concatenate([np.zeros(ahead, np.int64), text])[np.newaxis]
        spans = [Span(0, 0, rows)] if media else []
        tokens = [self.vocabulary_size] * ahead + list(token_ids)
        return ExpandedPrompt(tokens, spans, positions, len(token_ids))

    def joined(self, encoder_ids: Sequence[int], decoder_ids: Sequence[int]) -> list[int]:
        """See `TakesEncoderPrompt`. An empty decoder prompt begins as the model does."""
        check_reads_no_text(encoder_ids)
        return list(decoder_ids) or [self.start_id]

    def sounding_rows(self, info: MediaInfo) -> int:
        """See `WritesSpeech`. A row has two frames, the last of which may sound in part."""
        if info.duration is None:
            return info.row_count
        # A duration is a number of samples by their rate: what is lost in that is far below a row.
        frames = math.ceil(2 * info.duration / ROW_SECONDS - 1e-6)
        return min(info.row_count, frames // 2)

    def speech_prompt(self, task: SpeechTask) -> tuple[str, str]:
        """See `WritesSpeech`. A language that is not said is left to `rules`."""
        said = task.previous_text.strip()
        front = f"{PREVIOUS} " if said else ""
        language = self._language(task.language)
        if task.translates and not self.language_ids:
            raise InvalidRequestError("this model only writes down English", param="transcription.task")
        if (self.language_ids and language is None) or task.from_start:
            return front, START
        named = self._named(language, task)
        return front, f"{START}{named}{'' if task.timestamps else WITHOUT_TIMES}"

    def fitted(self, token_ids: list[int]) -> list[int]:
        """See `WritesSpeech`."""
        if self.previous_id is None or self.previous_id not in token_ids or self.start_id not in token_ids:
            return token_ids
        first, end = token_ids.index(self.previous_id) + 1, self._start_of(token_ids)
        kept = max(first, end - (self.most_previous - 1))
        return token_ids[:first] + token_ids[kept:]

    def rules(self, token_ids: list[int], task: SpeechTask | None) -> TokenRules:
        """See `WritesSpeech`. Where no task was given, the speech is written down without times."""
        if self.start_id not in token_ids:
            return TokenRules((), self.suppressed, self.first_suppressed)
        # As transformers knows it: checkpoints do not name it.
        silence = None if self.without_times_id is None else self.without_times_id - 1
        tail = token_ids[self._start_of(token_ids) + 1 :]
        wanted = task or SpeechTask()
        leading = self._leading(tail, wanted)
        times = None
        if self.without_times_id is not None:
            has_times = wanted.timestamps if leading else self.without_times_id not in tail
            rule = TimestampRule(self.without_times_id + 1, self.end_id, self.most_initial)
            times = rule if has_times else None
        return TokenRules(leading, self.suppressed, self.first_suppressed, times, silence_id=silence)

    def _leading(self, tail: Sequence[int], task: SpeechTask) -> tuple[tuple[int, ...], ...]:
        """What a prompt that ends with `tail` behind its start leaves open."""
        languages = tuple(sorted(self.language_ids.values()))
        ends_with_language = len(tail) == 1 and tail[0] in languages
        if tail and not ends_with_language:
            return ()
        said = self._language(task.language)
        heard = languages if said is None else (self.language_ids[said],)
        open_ends = [heard] if languages and not tail else []
        if languages:
            open_ends.append((self.task_ids[TRANSLATE if task.translates else TRANSCRIBE],))
        if not task.timestamps and self.without_times_id is not None:
            open_ends.append((self.without_times_id,))
        return tuple(open_ends)

    def _start_of(self, token_ids: Sequence[int]) -> int:
        """Where the model's turn begins: the last start token."""
        return len(token_ids) - 1 - list(reversed(token_ids)).index(self.start_id)

    def _named(self, language: str | None, task: SpeechTask) -> str:
        if not self.language_ids:
            return ""
        name = TRANSLATE if task.translates else TRANSCRIBE
        return f"{language}<|{name}|>"

    def _language(self, name: str) -> str | None:
        """A language's token by the language's name or code; None where none is given."""
        if not name:
            return None
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        lowered = name.lower()
        code = TO_LANGUAGE_CODE.get(lowered, lowered)
        if not self.language_ids and code == "en":
            return None
        token = f"<|{code}|>"
        if token not in self.language_ids:
            known = ", ".join(sorted(text.strip("<|>") for text in self.language_ids)) or "en"
            raise InvalidRequestError(
                f"this model does not know the language {name[:40]!r}; it knows {known}",
                param="transcription.language",
            )
        return token
