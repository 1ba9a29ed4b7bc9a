"""Florence-2: a picture and a task through BART's encoder, an answer with places in it from its decoder.

Makes the parts, which stand in files of their own. Does not know who runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from shared.families import florence2_original
from shared.families.base import LanguageModel, Preprocessor, PromptLayout, Tower
from shared.families.defaults import CommonFamily
from shared.families.florence2_layout import ROW_MULTIPLE, Florence2Layout
from shared.families.florence2_original import is_original, native_config
from shared.families.florence2_pictures import (
    PREFIXES,
    Florence2Preprocessor,
    Florence2Tower,
    build_florence2_tower,
)
from shared.families.looking import padding_behind

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.families.weights import Half


class Florence2Family(CommonFamily):
    """See `Family`."""

    model_type = "florence2"

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return Florence2Preprocessor(self._checkpoint, self.config())

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = self.config()
        module = self._half(partial(build_florence2_tower, config), "encoder", device, dtype)
        return Florence2Tower(module, config)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        return Florence2Layout.of(self._checkpoint, self.config())

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`. Its attention is its own, as answers and fronts are attended to apart."""
        from shared.families.florence2_decoder import BartModule, Florence2TextModel
        from shared.families.looking_attention import register_looking_attention

        register_looking_attention()
        config = self.config().text_config
        return Florence2TextModel(self._half(partial(BartModule, config), "language", device, dtype), config)

    def config(self) -> Any:
        """See `Family`."""
        return native_config(self._checkpoint) if is_original(self._checkpoint) else super().config()

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

    def _half(
        self, build: Callable[[], nn.Module], half: Half, device: torch.device, dtype: torch.dtype
    ) -> nn.Module:
        """What `build` makes, with its weights, in whichever layout they are; see `load_half`."""
        from shared.families.weights import load_half

        if not is_original(self._checkpoint):
            return load_half(build, self._checkpoint, half, PREFIXES, device, dtype)
        return load_half(
            build,
            self._checkpoint,
            half,
            florence2_original.PREFIXES,
            device,
            dtype,
            {florence2_original.TRANSPOSED: florence2_original.turned},
            florence2_original.RENAMED,
        )
