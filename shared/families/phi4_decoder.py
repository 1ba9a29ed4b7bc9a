"""Phi-4's language model: rows of one step with and without an adapter, of short and of long sequences.

Knows the modeling code's parts. Does not know which prompt takes which adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from shared.families.adapted_decoder import AdaptedDecoder
from shared.families.base import RowRun
from shared.families.longrope import LongRope, switch_length
from shared.families.lora_files import Adapter


class Phi4Decoder(AdaptedDecoder):
    """The LLM half with its weights and adapters; see `ChoosesByRow`."""

    def __init__(
        self, module: nn.Module, text_config: Any, axes: int, adapters: Mapping[str, Adapter]
    ) -> None:
        """Args:
        adapters: by the variant that each makes.
        """
        super().__init__(module, text_config, axes, adapters)
        self.switch_length = switch_length(text_config)
        self._rope: LongRope | None = None
        if self.switch_length is not None:
            self._rope = self._model.rotary_emb = LongRope(text_config, self._device)

    def _choose(self, runs: Sequence[RowRun]) -> None:
        super()._choose(runs)
        if self._rope is not None:
            self._rope.choose(runs)


def build_text_model(config: Any) -> nn.Module:
    """The modeling code's text model alone, without the towers that it holds."""
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as modeling

    # The towers that are built and let go would take the text model's attention for theirs.
    config.vision_config._attn_implementation = config.audio_config._attn_implementation = "sdpa"
    model: Any = modeling.Phi4MultimodalModel(config)
    del model.embed_tokens_extend
    built: nn.Module = model
    return built
