"""Qwen3.5: the tower and the prompts of Qwen3-VL, and a language model most of whose layers are linear.

Knows what differs from Qwen3-VL. Does not know how linear layers are run
(`gated_delta.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from shared.families.base import LanguageModel
from shared.families.config import model_config
from shared.families.mrope import AXES
from shared.families.qwen2_vl import PREFIXES as QWEN2_PREFIXES
from shared.families.qwen3_vl import Qwen3VLFamily

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.families.weights import Prefixes

PREFIXES: Prefixes = {**QWEN2_PREFIXES, "mtp.": ("neither", "")}
"""As Qwen2-VL's; `mtp` foretells further tokens and is not used, as in transformers."""


class Qwen35Family(Qwen3VLFamily):
    """Factory of the parts of one Qwen3.5 checkpoint; see `Family`."""

    model_type = "qwen3_5"
    prefixes: Prefixes = PREFIXES
    image_token_default: int = 248056
    video_token_default: int = 248057

    def extra_widths(self) -> Mapping[str, int]:
        """See `Family`. None."""
        return MappingProxyType({})

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`."""
        from shared.families.decoder import load_decoder
        from shared.families.gated_delta import GatedDeltaDecoder

        return load_decoder(
            self._build_text_model,
            model_config(self._checkpoint),
            self._checkpoint,
            PREFIXES,
            device,
            dtype,
            attention_name,
            AXES,
            make=GatedDeltaDecoder,
        )

    def _build_tower(self, config: Any) -> nn.Module:
        from transformers.models.qwen3_5 import modeling_qwen3_5

        module: nn.Module = modeling_qwen3_5.Qwen3_5VisionModel(config)
        return module

    def _build_text_model(self, config: Any) -> nn.Module:
        from transformers.models.qwen3_5 import modeling_qwen3_5

        module: nn.Module = modeling_qwen3_5.Qwen3_5TextModel(config)
        return module
