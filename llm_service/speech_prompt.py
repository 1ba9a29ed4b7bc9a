"""Prompts of models that write down what they hear: what is to be done, and what may follow.

Knows the wire's message and the family's layout. Does not know tokens of any model.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

from llm_service.special_tokens import SpecialTokenGuard
from protos.llm.v1 import llm_service_pb2 as pb
from shared.errors import InvalidRequestError
from shared.families.base import PromptLayout
from shared.families.token_rules import SpeechTask, TokenRules
from shared.families.writes_speech import WritesSpeech

MAX_PREVIOUS_TEXT_LENGTH = 16_384
"""Characters of `previous_text`; a model takes its last few hundred tokens."""

_TRANSLATE = pb.TRANSCRIPTION_TASK_TRANSLATE


class SpeechPrompts:
    """Makes and completes the prompts of one model."""

    def __init__(self, layout: WritesSpeech, placeholders: Container[int]) -> None:
        """Args:
        placeholders: tokens that may stand for a recording in a prompt, and mean nothing.
        """
        self._layout = layout
        self._placeholders = placeholders

    def pieces(self, task: SpeechTask, special_tokens: re.Pattern[str] | None) -> list[str]:
        """The prompt's text for a task, cut so that no typed special token is whole.

        Raises:
            InvalidRequestError: the model does not know the language, or only English.
        """
        guard = SpecialTokenGuard(special_tokens)
        front, behind = self._layout.speech_prompt(task)
        return guard.split(front + guard.protect(task.previous_text.strip()) + behind)

    def completed(self, token_ids: Sequence[int], task: SpeechTask | None) -> tuple[list[int], TokenRules]:
        """A prompt's tokens as the model takes them, and the rules of its answer."""
        said = [token_id for token_id in token_ids if token_id not in self._placeholders]
        fitted = self._layout.fitted(said)
        return fitted, self._layout.rules(fitted, task)


def check_wishes(request: pb.GenerateRequest, layout: PromptLayout) -> None:
    """Checks what a request wants to be told of an answer.

    Raises:
        InvalidRequestError: the model cannot tell, or the request wants what does not go with it.
    """
    if request.speech_measures and request.WhichOneof("prompt") != "transcription":
        raise InvalidRequestError("transcriptions alone are measured", param="speech_measures")
    if request.token_times:
        _check_times(request, layout)


def _check_times(request: pb.GenerateRequest, layout: PromptLayout) -> None:
    if not isinstance(layout, WritesSpeech) or not layout.tells_times:
        raise InvalidRequestError(
            "this model does not tell when words are heard: its checkpoint names no attention heads that do",
            param="token_times",
        )
    if request.stopping.stop_strings:
        raise InvalidRequestError("times of tokens and stop strings exclude each other", param="token_times")


def speech_task(request: pb.GenerateRequest) -> SpeechTask | None:
    """Reads what is to be done; None where the prompt is no transcription.

    Raises:
        InvalidRequestError: an unknown task, or too long a text.
    """
    if not request.HasField("transcription"):
        return None
    wire = request.transcription
    if wire.task not in pb.TranscriptionTask.values():
        raise InvalidRequestError(f"there is no task {wire.task}", param="transcription.task")
    if len(wire.previous_text) > MAX_PREVIOUS_TEXT_LENGTH:
        raise InvalidRequestError(
            f"the previous text has at most {MAX_PREVIOUS_TEXT_LENGTH} characters",
            param="transcription.previous_text",
        )
    return SpeechTask(
        wire.language,
        wire.task == _TRANSLATE,
        wire.previous_text,
        wire.timestamps,
        from_start=request.speech_measures,
    )
