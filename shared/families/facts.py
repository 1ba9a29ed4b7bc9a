"""What is told about a model family: the shape of an entry of the catalogue.

Knows facts, not code. Knows no family: those are in `catalogue.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Modality = Literal["image", "video", "audio"]


@dataclass(frozen=True, slots=True)
class EmbeddingFields:
    """The fields of one item of precomputed embeddings.

    Attributes:
        required: names that must be there, the rows first.
        optional: names that may be there.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, the required first."""
        return self.required + self.optional


@dataclass(frozen=True, slots=True)
class SpeechInstructions:
    """How a model that converses is asked to write down a recording, in a message beside it.

    Attributes:
        transcribe: where the language is not known.
        transcribe_language: where it is; `{language}` stands for its English name.
        translate: have it in English.
    """

    transcribe: str
    transcribe_language: str
    translate: str

    def text(self, language: str, *, translates: bool) -> str:
        """The message's text.

        Args:
            language: an English name, or "".
        """
        if translates:
            return self.translate
        return self.transcribe_language.format(language=language) if language else self.transcribe


IN_CONVERSATION = SpeechInstructions(
    "Transcribe the audio into text.",
    "Transcribe the {language} audio into text.",
    "Translate the audio into English text.",
)
"""As Qwen's own examples ask."""


@dataclass(frozen=True, slots=True)
class SpeechFacts:
    """How a family writes down what it hears.

    Attributes:
        instructions: None where the family has prompts of its own for it (`WritesSpeech`).
        times: whether it writes when things are said.
    """

    instructions: SpeechInstructions | None
    times: bool


@dataclass(frozen=True, slots=True)
class FamilyFacts:
    """One family.

    Attributes:
        model_type: the checkpoint's `model_type`.
        location: "module:Class" below `shared.families`.
        checkpoints: names that users know, as hub ids.
        modalities: what a prompt may hold.
        embedding_fields: what precomputed embeddings of a modality consist of.
        settings: processor settings that one picture may have of its own
            (`mm_processor_kwargs`).
        video_settings: those that one video may have; None: the same as a picture.
        audio_settings: those that one recording may have.
        speech: how it writes down recordings; None where it is not asked to.
        audio_settings_beside_pictures: what a recording is processed with in a prompt that holds
            pictures, where nobody says otherwise.
        several: whether one prompt may hold several items.
        notes: what else a user should know; one sentence, or "".
        other_model_types: further values of `model_type`, of the same model in other layouts.
    """

    model_type: str
    location: str
    checkpoints: tuple[str, ...]
    modalities: tuple[Modality, ...] = ("image",)
    embedding_fields: Mapping[Modality, EmbeddingFields] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    video_settings: tuple[str, ...] | None = None
    audio_settings: tuple[str, ...] = ()
    speech: SpeechFacts | None = None
    audio_settings_beside_pictures: Mapping[str, str] = field(default_factory=dict)
    several: bool = True
    notes: str = ""
    other_model_types: tuple[str, ...] = ()

    def settings_of(self, modality: Modality) -> tuple[str, ...]:
        """Processor settings that one item of a modality may have of its own."""
        if modality not in self.modalities:
            return ()
        if modality == "audio":
            return self.audio_settings
        if modality == "video" and self.video_settings is not None:
            return self.video_settings
        return self.settings
