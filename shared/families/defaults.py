"""What most families have in common, to inherit from.

Knows the usual answers to the questions of `shared/families/base.py`. Does not
know any family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from shared.errors import UnsupportedMediaError
from shared.families.base import Checkpoint, Features, LanguageModel, Modality, VideoClip
from shared.families.config import model_config

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.weights import Prefixes


class PicturesAlone:
    """A preprocessor that takes no videos."""

    def preprocess_video(self, clip: VideoClip, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. Refuses."""
        raise UnsupportedMediaError("the model takes no videos")


class AudioAlone(PicturesAlone):
    """A preprocessor that takes neither pictures nor videos."""

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. Refuses."""
        raise UnsupportedMediaError("the model takes no pictures")


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
        return int(self.config().get_text_config().max_position_embeddings)

    def hidden_size(self) -> int:
        """See `Family`."""
        return int(self.config().get_text_config().hidden_size)

    def vocabulary_size(self) -> int:
        """See `Family`."""
        return int(self.config().get_text_config().vocab_size)

    def config(self) -> Any:
        """See `Family`."""
        return model_config(self._checkpoint)

    def extra_widths(self) -> Mapping[str, int]:
        """See `Family`. None."""
        return MappingProxyType({})


class PlainTextFamily(CommonFamily):
    """A family whose language model is transformers' own, with positions of one axis.

    Attributes:
        prefixes: where each tensor of a checkpoint belongs.
        renamed: ends of names in older files; see `load_half`.
    """

    prefixes: Prefixes
    renamed: Mapping[str, str] = MappingProxyType({})

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`."""
        from shared.families.decoder import load_decoder

        return load_decoder(
            _build_text_model,
            self._config(),
            self._checkpoint,
            self.prefixes,
            device,
            dtype,
            attention_name,
            axes=1,
            renamed=self.renamed,
        )

    def _encoder_half(
        self, build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype
    ) -> nn.Module:
        """What `build` makes, with its weights; see `load_half`."""
        from shared.families.weights import load_half

        return load_half(build, self._checkpoint, "encoder", self.prefixes, device, dtype)

    def _config(self) -> Any:
        """The configuration, fresh; a family may refuse it here."""
        return self.config()


def _build_text_model(config: Any) -> nn.Module:
    from transformers import AutoModel

    module: nn.Module = AutoModel.from_config(config)
    return module
