"""Llama 3.2 Vision: pictures in tiles, a language model some of whose layers look at them across.

Makes the parts, which stand in files of their own. Does not know who runs them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shared.families.base import LanguageModel, Preprocessor, PromptLayout, Tower
from shared.families.defaults import CommonFamily
from shared.families.mllama_layout import MllamaLayout
from shared.families.mllama_pictures import (
    PREFIXES,
    MllamaPreprocessor,
    MllamaTower,
    TilePlaces,
    build_mllama_tower,
)

if TYPE_CHECKING:
    import torch


class MllamaFamily(CommonFamily):
    """See `Family`."""

    model_type = "mllama"

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return MllamaPreprocessor(self._checkpoint, self.config())

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        from shared.families.weights import load_half

        config = self.config()
        build = partial(build_mllama_tower, config)
        module = load_half(build, self._checkpoint, "encoder", PREFIXES, device, dtype)
        return MllamaTower(module, config)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self.config()
        return MllamaLayout(int(config.image_token_index), TilePlaces.of(config).tile_rows)

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`. Its attention is its own, as its text and its pictures attend apart."""
        from shared.families.mllama_decoder import load_mllama_decoder

        return load_mllama_decoder(self.config(), self._checkpoint, device, dtype)
