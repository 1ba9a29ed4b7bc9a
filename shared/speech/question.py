"""What is asked about every piece of a recording, in the words of the wire. Pure: no I/O, no state.

Knows how families are asked. Does not know how recordings are cut or who answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from protos.llm.v1 import llm_service_pb2
from shared.errors import InvalidRequestError
from shared.families.catalogue import SpeechFacts
from shared.families.languages import known_name

_TOKENS_PER_SECOND = 25
"""Most tokens of an answer for each second, of models that would go on: people speak fewer than ten."""

_MORE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Asking:
    """What differs between the times that one question is asked.

    Attributes:
        piece: the index of the piece that is asked about.
        language: as known by now; "" where the model is to hear it.
        temperature: what tokens are chosen with.
    """

    piece: int
    language: str
    temperature: float


@dataclass(frozen=True, slots=True)
class SpeechQuestion:
    """One question about all pieces.

    Attributes:
        facts: how the served family writes down speech.
        language: what is spoken, a code or a name; "" where the model is to hear it.
        translates: have it in English.
        prompt: what was said before, or how words are spelt.
        wants_times: segments are asked for.
        wants_words: words with their times are.
        temperatures: what tokens are chosen with; those behind the first where an answer is not to
            be trusted. Models that do not tell how sure they are are asked once.
        judges: answers are held back until it is known whether they are to be trusted.

    Raises:
        InvalidRequestError: nobody knows the language. A model that has marks for languages is
            asked itself.
    """

    facts: SpeechFacts
    language: str = ""
    translates: bool = False
    prompt: str = ""
    wants_times: bool = False
    wants_words: bool = False
    temperatures: tuple[float, ...] = (0.0,)
    judges: bool = False

    def __post_init__(self) -> None:
        if self.facts.instructions is not None and self.language and known_name(self.language) is None:
            raise InvalidRequestError(
                f"Unknown language {self.language[:40]!r}: 'language' is a code of ISO 639-1 ('en') or an"
                " English name ('english').",
                param="language",
            )

    @property
    def marked(self) -> bool:
        """Whether the model writes marks among its text, of the language where none is said among them."""
        return self.facts.instructions is None

    @property
    def measured(self) -> bool:
        """Whether the model is to tell how sure it is."""
        return self.marked and (self.wants_times or self.judges)

    @property
    def times(self) -> bool:
        """Whether the model is to write times."""
        return self.facts.times and self.wants_times

    def put_into(self, request: llm_service_pb2.GenerateRequest, seconds: float, asking: Asking) -> None:
        """Completes a request about one piece: its prompt, and what is to be told of its tokens.

        Args:
            request: names the piece as its only item.
            seconds: the piece's length.
        """
        request.top_logprobs = 0
        request.sampling.temperature = asking.temperature
        request.token_times = self.wants_words
        request.speech_measures = self.measured
        if self.facts.instructions is None:
            request.transcription.CopyFrom(self._task(asking.language))
            return
        if not request.stopping.HasField("max_token_count"):
            request.stopping.max_token_count = _MORE_TOKENS + int(_TOKENS_PER_SECOND * seconds)
        message = request.conversation.messages.add(role="user")
        message.parts.add(media_index=0)
        name = known_name(asking.language) or ""
        text = self.facts.instructions.text(name.title(), translates=self.translates)
        message.parts.add(text=f"{text}\n{self.prompt}" if self.prompt else text)

    def _task(self, language: str) -> llm_service_pb2.Transcription:
        return llm_service_pb2.Transcription(
            language=language,
            task=llm_service_pb2.TRANSCRIPTION_TASK_TRANSLATE
            if self.translates
            else llm_service_pb2.TRANSCRIPTION_TASK_TRANSCRIBE,
            previous_text=self.prompt,
            timestamps=self.times,
        )
