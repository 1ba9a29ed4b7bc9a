"""Qwen2.5-VL: as Qwen2-VL, with windows in the tower.

Knows what differs from Qwen2-VL. For pictures the prompt's layout is the same;
only videos have other positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.families.qwen2_vl import Qwen2VLFamily

if TYPE_CHECKING:
    from torch import nn


class Qwen25VLFamily(Qwen2VLFamily):
    """Factory of the parts of one Qwen2.5-VL checkpoint; see `Family`."""

    model_type = "qwen2_5_vl"

    def _build_tower(self, config: Any) -> nn.Module:
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

        module: nn.Module = modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel(config)
        return module

    def _build_text_model(self, config: Any) -> nn.Module:
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

        module: nn.Module = modeling_qwen2_5_vl.Qwen2_5_VLTextModel(config)
        return module
