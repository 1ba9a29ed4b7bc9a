"""A transcription request to the wire contract, piece by piece. Pure: no I/O, no state.

Knows both vocabularies. Does not know how recordings are cut or who answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.transcription_form import TranscriptionRequest
from protos.llm.v1 import llm_service_pb2
from shared.errors import InvalidRequestError, UnsupportedMediaError
from shared.families.catalogue import FamilyFacts, SpeechFacts
from shared.families.languages import language_name

if TYPE_CHECKING:
    from gateway.transcribing import Piece

_TOKENS_PER_SECOND = 25
"""Most tokens of an answer for each second, of models that would go on: people speak fewer than ten."""

_MORE_TOKENS = 64

SPEECH_NAMES: Mapping[str, str] = {
    "transcription.language": "language",
    "transcription.task": "model",
    "transcription.previous_text": "prompt",
    "max_token_count": "max_completion_tokens",
    "conversation": "prompt",
    "media": "file",
    "token_times": "timestamp_granularities",
}
"""What a transcription request calls fields of the wire."""


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """What is asked about every piece of a recording.

    Attributes:
        form: the request's fields.
        facts: how the served family writes down speech.
        translates: have it in English.
        request_id: for logs.
    """

    form: TranscriptionRequest
    facts: SpeechFacts
    translates: bool
    request_id: str

    @property
    def language(self) -> str:
        """What is spoken, as the request says it; "" where it does not."""
        return self.form.language

    @property
    def hears_language(self) -> bool:
        """Whether the model says what is spoken where the request does not."""
        return self.facts.instructions is None

    @property
    def times(self) -> bool:
        """Whether the model is to write times."""
        return self.facts.times and self.form.wants_segments

    def request_for(self, piece: Piece, index: int, language: str) -> llm_service_pb2.GenerateRequest:
        """The LLM service's request about one piece.

        Args:
            language: a code or a name; "" where the model is to hear it.
        """
        form = self.form
        request = llm_service_pb2.GenerateRequest(
            request_id=f"{self.request_id[:120]}-{index}",
            media=[piece.item.item],
            sampling=llm_service_pb2.SamplingParameters(
                temperature=form.temperature, top_p=form.top_p, seed=form.seed
            ),
            stopping=llm_service_pb2.StoppingParameters(max_token_count=self._most_tokens(piece)),
            top_logprobs=0,
            token_times=form.wants_words,
        )
        if self.facts.instructions is None:
            request.transcription.CopyFrom(
                llm_service_pb2.Transcription(
                    language=language,
                    task=llm_service_pb2.TRANSCRIPTION_TASK_TRANSLATE
                    if self.translates
                    else llm_service_pb2.TRANSCRIPTION_TASK_TRANSCRIBE,
                    previous_text=form.prompt,
                    timestamps=self.times,
                )
            )
            return request
        message = request.conversation.messages.add(role="user")
        message.parts.add(media_index=0)
        name = language_name(language) if language else ""
        text = self.facts.instructions.text(name.title(), translates=self.translates)
        message.parts.add(text=f"{text}\n{form.prompt}" if form.prompt else text)
        return request

    def _most_tokens(self, piece: Piece) -> int | None:
        if self.form.max_completion_tokens is not None or self.facts.instructions is None:
            return self.form.max_completion_tokens
        return _MORE_TOKENS + int(_TOKENS_PER_SECOND * (piece.end_s - piece.start_s))


def speech_facts(facts: FamilyFacts | None, form: TranscriptionRequest) -> SpeechFacts:
    """How the served family writes down what the request asks for.

    Raises:
        InvalidRequestError: it does not, or not in this form.
    """
    if facts is None or facts.speech is None:
        takes = ", ".join(("text", *(facts.modalities if facts else ())))
        raise InvalidRequestError(
            f"The model does not write down speech; it takes: {takes}.",
            param="model",
            code=UnsupportedMediaError.default_code,
        )
    if not facts.speech.times and form.response_format in ("srt", "vtt"):
        raise InvalidRequestError(
            f"The model does not tell when things are said: 'response_format' cannot be"
            f" '{form.response_format}'.",
            param="response_format",
        )
    if not facts.speech.times and form.wants_words:
        raise InvalidRequestError(
            "The model does not tell when words are said: 'timestamp_granularities' cannot have 'word'.",
            param="timestamp_granularities",
        )
    return facts.speech
