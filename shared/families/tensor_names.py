"""Names of tensors that several families share.

Knows the beginnings that transformers and the hub's files have for a tower, a
projector and a language model. Does not know shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.families.weights import Prefixes

TOWER_AND_PROJECTOR: Prefixes = {
    "vision_tower.": ("encoder", "tower."),
    "vision_tower.vision_model.": ("encoder", "tower."),
    "model.vision_tower.": ("encoder", "tower."),
    "model.vision_tower.vision_model.": ("encoder", "tower."),
    "multi_modal_projector.": ("encoder", "projector."),
    "model.multi_modal_projector.": ("encoder", "projector."),
    "language_model.model.": ("language", "model."),
    "model.language_model.": ("language", "model."),
    "language_model.lm_head.": ("language", "lm_head."),
    "lm_head.": ("language", "lm_head."),
}
"""Of the models built like LLaVA: as the hub's files name tensors, and as newer transformers save them."""

AUDIO_TOWER_AND_PROJECTOR: Prefixes = {
    "audio_tower.": ("encoder", "tower."),
    "model.audio_tower.": ("encoder", "tower."),
    # As transformers 5.17 saves these models.
    "language_model.model.model.": ("language", "model."),
    **{
        beginning: owner
        for beginning, owner in TOWER_AND_PROJECTOR.items()
        if "vision_tower" not in beginning
    },
}
"""The same of models that hear."""
