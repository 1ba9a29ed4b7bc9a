"""A transcription request to the wire contract, piece by piece. Pure: no I/O, no state.

Knows both vocabularies. Does not know how recordings are cut or who answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.media import ResolvedItem
from gateway.transcription_form import TranscriptionRequest
from protos.llm.v1 import llm_service_pb2
from shared.errors import InvalidRequestError, UnsupportedMediaError
from shared.families.catalogue import FamilyFacts, SpeechFacts
from shared.speech.judging import INCREMENT, temperatures
from shared.speech.question import Asking, SpeechQuestion

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
    """What a request asks about a recording.

    Attributes:
        form: the request's fields.
        question: the same, as every piece is asked it.
        request_id: for logs.
    """

    form: TranscriptionRequest
    question: SpeechQuestion
    request_id: str

    @classmethod
    def of(
        cls, form: TranscriptionRequest, facts: SpeechFacts, request_id: str, *, translates: bool
    ) -> SpeechRequest:
        """Puts a form into a question."""
        question = SpeechQuestion(
            facts,
            language=form.language,
            translates=translates,
            prompt=form.prompt,
            wants_times=form.wants_segments,
            wants_words=form.wants_words,
            temperatures=temperatures(form.temperature, form.temperature_increment_on_fallback),
            # What was said in a stream cannot be taken back.
            judges=not form.stream,
        )
        return cls(form, question, request_id)

    def request_for(
        self, item: ResolvedItem, seconds: float, asking: Asking
    ) -> llm_service_pb2.GenerateRequest:
        """The LLM service's request about one piece.

        Args:
            seconds: the piece's length.
        """
        form = self.form
        request = llm_service_pb2.GenerateRequest(
            request_id=f"{self.request_id[:120]}-{asking.piece}",
            media=[item.item],
            sampling=llm_service_pb2.SamplingParameters(top_p=form.top_p, seed=form.seed),
            stopping=llm_service_pb2.StoppingParameters(max_token_count=form.max_completion_tokens),
        )
        self.question.put_into(request, seconds, asking)
        return request


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
    if facts.speech.instructions is not None and form.wants_tries:
        raise InvalidRequestError(
            "The model does not tell how sure it is: nothing is tried again.", param=INCREMENT
        )
    return facts.speech
