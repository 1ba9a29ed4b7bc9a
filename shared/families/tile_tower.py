"""A CLIP or SigLIP tower and a projector over square tiles of one size.

Knows how rows of chosen layers come out of such a tower. Does not know how a picture
is cut into tiles, nor what is made of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint, Features
from shared.families.clip_kernels import move_blocks
from shared.families.defaults import InOneGo
from shared.families.image_processor import ImageProcessor

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.kernels.library import Team

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Rows of a tower's output in front of its patches."""


class TileTower(InOneGo):
    """Tower and projector with their weights; families add `encode`.

    Attributes:
        hidden_size: width of an output row.
    """

    def __init__(self, module: nn.Module, config: Any) -> None:
        """Args:
        module: with `tower`, a CLIP or SigLIP vision model, and `projector`.
        config: configuration of the whole model.
        """
        self._module: Any = module
        layers = config.vision_feature_layer
        self._layers = [layers] if isinstance(layers, int) else list(layers)
        self._drops_first = config.vision_feature_select_strategy == "default"
        self.hidden_size = int(config.get_text_config().hidden_size)

    def tile_rows(self, pixels: torch.Tensor) -> torch.Tensor:
        """Float (tiles, channels, side, side) to (tiles, rows, hidden), in the weights' type and place."""
        weight = self._module.projector.linear_1.weight
        output = self._module.tower(pixels.to(weight.device, weight.dtype), output_hidden_states=self._layers)
        chosen = [output.hidden_states[layer] for layer in self._layers]
        rows = chosen[0] if len(chosen) == 1 else _joined(chosen)
        projected: torch.Tensor = self._module.projector(rows[:, 1:] if self._drops_first else rows)
        return projected

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. The blocks alone: patches and projector are a few percent of the work."""
        return move_blocks(self._module.tower, self._module.tower.config.hidden_act, team)


def join_pixels(batch: Sequence[Features]) -> torch.Tensor:
    """`pixel_values` of several items, one after the other."""
    import torch

    return torch.from_numpy(np.concatenate([features.arrays["pixel_values"] for features in batch]))


def rows_of_a_tile(checkpoint: Checkpoint, config: Any, also: str = "") -> int:
    """Rows that the tower gives for one tile.

    Args:
        also: another kind of tower that the family has, for the error's text.

    Raises:
        InvalidRequestError: a kind of tower that is not known.
    """
    vision = config.vision_config
    if vision.model_type not in CLASS_TOKENS:
        known = [*sorted(CLASS_TOKENS), *filter(None, [also])]
        raise InvalidRequestError(
            f"{checkpoint.folder} has a {vision.model_type} tower;"
            f" {config.model_type} is served with {' or '.join(known)}"
        )
    patches = (vision.image_size // vision.patch_size) ** 2
    dropped = 1 if config.vision_feature_select_strategy == "default" else 0
    return int(patches + CLASS_TOKENS[vision.model_type] - dropped)


def check_tile_size(checkpoint: Checkpoint, processor: ImageProcessor, side: int) -> None:
    """Raises InvalidRequestError where the processor makes other sizes than the tower takes."""
    from PIL import Image

    *_, height, width = processor(Image.new("RGB", (side, 2 * side)))["pixel_values"].shape
    if (height, width) != (side, side):
        raise InvalidRequestError(
            f"{checkpoint.folder}: the image processor makes {width} x {height} pixels,"
            f" the tower takes {side} x {side}"
        )


def build_tile_tower(config: Any, projector: nn.Module, **parts: Any) -> nn.Module:
    """The module of a `TileTower`, without weights.

    Args:
        config: configuration of the whole model.
        parts: further modules or parameters by name.
    """
    from torch import nn
    from transformers import AutoModel

    tower = AutoModel.from_config(config.vision_config)
    module = nn.Module()
    # Weights are stored without the wrapper that some versions put around the tower.
    module.tower = getattr(tower, "vision_model", tower)
    module.projector = projector
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def _joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat(list(rows), dim=-1)
