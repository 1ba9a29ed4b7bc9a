"""Qwen3-VL with experts in the language model.

Knows what differs from Qwen3-VL, and the layouts in which checkpoints hold experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shared.families.qwen3_vl import Qwen3VLFamily

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.families.weights import Fit

EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
"""Ends of names of the stacked matrices of a layer's experts."""


def turn_experts(value: torch.Tensor, wanted: torch.Size) -> torch.Tensor:
    """(experts, in, out), as the hub's files and transformers' own have it, to (experts, out, in).

    A tensor that fits already stays as it is, as in transformers.
    """
    turned = value.dim() == len(wanted) and value.shape != wanted
    return value.transpose(1, 2).contiguous() if turned and value.dim() == 3 else value


class Qwen3VLMoeFamily(Qwen3VLFamily):
    """Factory of the parts of one Qwen3-VL checkpoint with experts; see `Family`."""

    model_type = "qwen3_vl_moe"

    def _fits(self) -> Mapping[str, Fit]:
        return dict.fromkeys(EXPERTS, turn_experts)

    def _build_tower(self, config: Any) -> nn.Module:
        from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe

        module: nn.Module = modeling_qwen3_vl_moe.Qwen3VLMoeVisionModel(config)
        return module

    def _build_text_model(self, config: Any) -> nn.Module:
        from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe

        module: nn.Module = modeling_qwen3_vl_moe.Qwen3VLMoeTextModel(config)
        return module
