"""Phi-4-multimodal's towers and projections: of pictures in tiles, and of recordings.

Knows pixels, rows and the weights between them. Does not know prompts, nor the language model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shared.families.base import MAIN_TENSOR, Features
from shared.families.defaults import InOneGo
from shared.families.dynamic_hd import Tiling
from shared.families.phi4_speech import hear
from shared.families.video_settings import FrameRecipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.kernels.library import Team

logger = logging.getLogger(__name__)

PICTURE = "picture"
"""Features of a picture: uint8 (height, width, 3), as it was decoded."""


class Phi4Tower(InOneGo):
    """Towers and projections of pictures and of recordings with their weights; see `Tower`."""

    def __init__(self, module: Any, hidden_size: int, tiling: Tiling, recipe: FrameRecipe) -> None:
        """Args:
        module: transformers' image embedding and audio embedding, which hold the towers.
        """
        self._module: Any = module.image_embed
        self._ears: Any = module.audio_embed
        self._tiling = tiling
        self._recipe = recipe
        self.hidden_size = hidden_size

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`."""
        import torch

        seen = iter(self._see([features for features in batch if PICTURE in features.arrays]))
        with torch.inference_mode():
            return [
                {MAIN_TENSOR: next(seen) if PICTURE in features.arrays else hear(self._ears, features)}
                for features in batch
            ]

    def _see(self, batch: Sequence[Features]) -> Sequence[torch.Tensor]:
        """Rows of each picture. Tiles attend to themselves alone."""
        import torch

        if not batch:
            return []
        weight = self._module.img_projection_up.weight
        with torch.inference_mode():
            made = [self.pixels(features) for features in batch]
            pixels = torch.cat([tiles for tiles, _ in made]).to(weight.dtype)
            masks = torch.cat([mask for _, mask in made])
            cells = self._module.get_img_features(pixels, attention_mask=masks)
            parts = torch.split(cells, [len(tiles) for tiles, _ in made])
            rows = torch.cat([self._rows(*each) for each in zip(batch, parts, strict=True)])
            projected = self._module.img_projection_down(
                torch.nn.functional.gelu(self._module.img_projection_up(rows))
            )
        return torch.split(projected, [features.info.row_count for features in batch])

    def pixels(self, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
        """What the tower is shown of a picture, on its device: first the whole, then the tiles.

        Returns:
            Numbers, float32 (1 + tiles, 3, side, side), and which patches are not
            padding, bool (1 + tiles, patches, patches).
        """
        from shared.families.dynamic_hd_pixels import tile_masks, tile_pixels

        device = self._module.img_projection_up.weight.device
        picture = features.arrays[PICTURE]
        (grid,) = features.info.grids
        placement = self._tiling.place(picture.shape[:2], (grid.height, grid.width))
        pixels = tile_pixels(picture, placement, self._tiling, self._recipe, device)
        return pixels, tile_masks(placement, self._tiling, device)

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. Ours know no padding, which most pictures have."""
        logger.info("torch computes this tower: tiles are padded")
        return False

    def _rows(self, features: Features, cells: torch.Tensor) -> torch.Tensor:
        """(1 + tiles, cells, width) to a picture's rows, not yet projected: lines, a separator, the whole."""
        import torch

        side, width = self._tiling.cells, cells.shape[-1]
        (grid,) = features.info.grids
        placement = self._tiling.place(features.arrays[PICTURE].shape[:2], (grid.height, grid.width))
        height, columns = placement.cells
        tiles = cells[1:].reshape(grid.height, grid.width, side, side, width).transpose(1, 2)
        lines = tiles.reshape(grid.height * side, grid.width * side, width)[:height, :columns]
        between = self._module.global_img_feature_extensor[0]
        whole = self._with_ends(cells[0].reshape(side, side, width))
        return torch.cat([self._with_ends(lines), between, whole])

    def _with_ends(self, lines: torch.Tensor) -> torch.Tensor:
        """(lines, cells, width) to (lines x (cells + 1), width): a row after each line."""
        import torch

        ends = self._module.sub_img_feature_extensor[0].expand(len(lines), -1, -1)
        return torch.cat([lines, ends], dim=1).flatten(0, 1)


def build_towers(config: Any) -> nn.Module:
    """transformers' image and audio embeddings, without weights."""
    from torch import nn
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as modeling

    from shared.families.phi4_speech import build_audio_embedding

    module: Any = nn.Module()
    module.image_embed = modeling.Phi4MultimodalImageEmbedding(config)
    module.audio_embed = build_audio_embedding(config)
    for part in module.modules():
        if isinstance(part, modeling.Phi4MultimodalVisionAttention):
            # The class says otherwise, and its call through SDPA believes it where no tile is padded.
            part.is_causal = False
    built: nn.Module = module
    return built
