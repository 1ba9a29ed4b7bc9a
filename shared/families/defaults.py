"""What most families have in common, to inherit from.

Knows the usual answers to the questions of `shared/families/base.py`. Does not
know any family.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shared.errors import UnsupportedMediaError
from shared.families.base import Checkpoint, Features, Modality, VideoClip
from shared.families.config import model_config


class PicturesAlone:
    """A preprocessor that takes no videos."""

    def preprocess_video(self, clip: VideoClip, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. Refuses."""
        raise UnsupportedMediaError("the model takes no videos")


class InOneGo:
    """A tower that encodes every item whole."""

    def split(self, features: Features) -> list[Features]:
        """See `Tower`. The item itself."""
        return [features]


class CommonFamily:
    """The parts of `Family` that follow from the text model's configuration."""

    model_type: str
    modalities: tuple[Modality, ...] = ("image",)

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def context_length(self) -> int:
        """See `Family`."""
        return int(model_config(self._checkpoint).get_text_config().max_position_embeddings)

    def hidden_size(self) -> int:
        """See `Family`."""
        return int(model_config(self._checkpoint).get_text_config().hidden_size)

    def extra_widths(self) -> Mapping[str, int]:
        """See `Family`. None."""
        return MappingProxyType({})
