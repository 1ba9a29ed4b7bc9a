"""Florence-2: a picture and a task through BART's encoder, an answer with places in it from its decoder.

Makes the parts, which stand in files of their own. Does not know who runs them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shared.families.base import LanguageModel, Preprocessor, PromptLayout, Tower
from shared.families.defaults import CommonFamily
from shared.families.florence2_layout import ROW_MULTIPLE, Florence2Layout
from shared.families.florence2_pictures import (
    PREFIXES,
    Florence2Preprocessor,
    Florence2Tower,
    build_florence2_tower,
)
from shared.families.looking import padding_behind

if TYPE_CHECKING:
    import torch


class Florence2Family(CommonFamily):
    """See `Family`."""

    model_type = "florence2"

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return Florence2Preprocessor(self._checkpoint, self.config())

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        from shared.families.weights import load_half

        config = self.config()
        build = partial(build_florence2_tower, config)
        module = load_half(build, self._checkpoint, "encoder", PREFIXES, device, dtype)
        return Florence2Tower(module, config)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        return Florence2Layout.of(self._checkpoint, self.config())

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`. Its attention is its own, as answers and fronts are attended to apart."""
        from shared.families.florence2_decoder import load_florence2_text_model

        return load_florence2_text_model(self.config(), self._checkpoint, PREFIXES, device, dtype)

    def context_length(self) -> int:
        """See `Family`. What the encoder reads and what the decoder writes."""
        positions = int(self.config().text_config.max_position_embeddings)
        return 2 * positions + padding_behind(positions, ROW_MULTIPLE)

    def hidden_size(self) -> int:
        """See `Family`."""
        return int(self.config().text_config.d_model)

    def vocabulary_size(self) -> int:
        """See `Family`."""
        return int(self.config().text_config.vocab_size)
