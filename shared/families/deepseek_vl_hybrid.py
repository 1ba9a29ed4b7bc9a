"""DeepSeek-VL with two towers: SigLIP over the picture, SAM over a larger copy of it.

Knows what differs from DeepSeek-VL: the second tower and how the two are joined.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shared.families.base import Features, Preprocessor, Tower
from shared.families.config import model_config
from shared.families.deepseek_vl import (
    PREFIXES,
    DeepseekVLFamily,
    DeepseekVLPreprocessor,
    DeepseekVLTower,
    build_siglip,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.families.weights import Prefixes
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)

LARGE = "high_res_pixel_values"

HYBRID_PREFIXES: Prefixes = {
    **PREFIXES,
    "model.high_res_vision_model.": ("encoder", "large."),
    "model.high_res_vision_neck.": ("encoder", "neck."),
    "model.high_res_vision_proj.": ("encoder", "shrink."),
    "model.high_res_vision_alpha": ("encoder", "alpha"),
}


class HybridPreprocessor(DeepseekVLPreprocessor):
    """Pictures in two sizes; see `Preprocessor`."""

    pixel_names = ("pixel_values", LARGE)


class HybridTower(DeepseekVLTower):
    """Both towers and the aligner with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, hidden_size: int, shown_layer: int) -> None:
        """Args:
        shown_layer: the large tower's layer whose states are added to its last ones.
        """
        super().__init__(module, hidden_size)
        self._shown_layer = shown_layer

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. The small tower alone: the large one attends by relative positions."""
        logger.info("torch computes the large tower")
        return super().use_kernels(team)

    def _rows(self, batch: Sequence[Features]) -> torch.Tensor:
        parts = self._module
        small = parts.tower(self._pixels(batch, "pixel_values")).last_hidden_state
        large = parts.large(self._pixels(batch, LARGE), output_hidden_states=True)
        # Behind the embeddings, which are the first of the hidden states.
        shown = parts.shrink(parts.neck(large.hidden_states[self._shown_layer + 1]))
        joined = parts.shrink(large.last_hidden_state) + shown * parts.alpha
        rows: torch.Tensor = parts.aligner(small, joined.flatten(2).transpose(1, 2))
        return rows


class DeepseekVLHybridFamily(DeepseekVLFamily):
    """Factory of the parts of one checkpoint with two towers; see `Family`."""

    model_type = "deepseek_vl_hybrid"
    prefixes = HYBRID_PREFIXES

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return HybridPreprocessor(self._checkpoint, model_config(self._checkpoint))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = model_config(self._checkpoint)
        for vision in (config.vision_config, config.high_res_vision_config):
            vision._attn_implementation = "sdpa"
        module = self._encoder_half(lambda: _build_towers(config), device, dtype)
        shown = int(config.high_res_vision_config.global_attn_indexes[0])
        return HybridTower(module, self.hidden_size(), shown)


def _build_towers(config: Any) -> nn.Module:
    import torch
    from torch import nn
    from transformers import AutoModel
    from transformers.models.deepseek_vl_hybrid import modeling_deepseek_vl_hybrid as modeling

    vision, large = config.vision_config, config.high_res_vision_config
    module = nn.ModuleDict(
        {
            "tower": build_siglip(config),
            "large": AutoModel.from_config(large),
            "neck": modeling.DeepseekVLSamVisionNeck(large),
            "shrink": modeling.DeepseekVLSamVisionProj(large, vision.image_size // vision.patch_size),
            "aligner": modeling.DeepseekVLHybridAligner(config),
        }
    )
    module.register_parameter("alpha", nn.Parameter(torch.zeros(1)))
    return module
