"""Llama 3.2 Vision's encoder half: tiles of a picture to the states that its language model attends to.

A picture is cut into up to `max_num_tiles` square tiles, laid out as one of the aspect
ratios that the checkpoint lists. The tower always computes all places for tiles: those
without a tile are zero pixels, and tokens in front of a prompt's first picture attend to
their states too, as transformers' mask of such tokens leaves everything out and so nothing.
Hence an item has the rows of all places, and its grid says how many hold tiles.

Knows pixels, tiles and states. Does not know prompts, nor who attends to what.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.base import (
    MAIN_TENSOR,
    Checkpoint,
    EncodedItem,
    Features,
    Grid,
    MediaInfo,
    Modality,
    RawTensor,
)
from shared.families.defaults import InOneGo, PicturesAlone
from shared.families.embeddings import check_fields, check_rows, read_grids
from shared.families.image_processor import ImageProcessor

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.weights import Prefixes
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)

ROWS = "image_embeds"
GRID = "image_grid_thw"
PIXELS = "pixel_values"
RATIO = "aspect_ratio_ids"

PREFIXES: Prefixes = {
    "vision_model.": ("encoder", "tower."),
    "model.vision_model.": ("encoder", "tower."),
    "multi_modal_projector.": ("encoder", "multi_modal_projector."),
    "model.multi_modal_projector.": ("encoder", "multi_modal_projector."),
    "language_model.model.": ("language", "model."),
    "model.language_model.": ("language", "model."),
    "language_model.lm_head.": ("language", "lm_head."),
    "lm_head.": ("language", "lm_head."),
}
"""As the hub's files name tensors, and as newer transformers have them."""


@dataclass(frozen=True, slots=True)
class TilePlaces:
    """Where tiles of a picture go.

    Attributes:
        count: places for tiles that every picture has.
        tile_rows: states of one place: a class token and the patches.
        ratios: (down, across) in tiles, by the checkpoint's id less 1.
    """

    count: int
    tile_rows: int
    ratios: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, config: Any) -> TilePlaces:
        """Reads the configuration of the whole model."""
        vision = config.vision_config
        ratios = tuple((int(down), int(across)) for down, across in vision.supported_aspect_ratios)
        side = int(vision.image_size) // int(vision.patch_size)
        return cls(int(vision.max_num_tiles), side * side + 1, ratios)

    def picture(self, ratio: tuple[int, int], size: tuple[int, int] | None) -> MediaInfo:
        """The layout of a picture of `ratio` tiles down and across, of `size` pixels."""
        return MediaInfo(self.count * self.tile_rows, grids=(Grid(1, *ratio),), image_size=size)


class MllamaPreprocessor(PicturesAlone):
    """Pictures and precomputed states; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._places = TilePlaces.of(config)
        self._check_tiles(checkpoint, int(config.vision_config.image_size))

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. There are no settings."""
        if settings:
            raise InvalidRequestError(f"unknown processor setting {min(settings)!r}; this model has none")
        arrays = self._processor(picture)
        ratio_id = arrays[RATIO].reshape(1).astype(np.int64)
        down, across = self._places.ratios[int(ratio_id[0]) - 1]
        pixels = np.ascontiguousarray(arrays[PIXELS][0, 0, : down * across])
        info = self._places.picture((down, across), (picture.height, picture.width))
        return Features(info, {PIXELS: pixels, RATIO: ratio_id}, info.row_count)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden), the projected states of all places for
        tiles, one place after the other; `image_grid_thw` [3] or [1, 3]: 1, and how many
        tiles there are down and across.
        """
        check_fields(fields, required=(ROWS, GRID), optional=())
        grids = read_grids(GRID, fields[GRID], merge_size=1)
        ratio = (grids[0].height, grids[0].width)
        if len(grids) != 1 or grids[0].time != 1 or ratio not in self._places.ratios:
            known = ", ".join(f"[1, {down}, {across}]" for down, across in self._places.ratios)
            raise BadEmbeddingsError(f"{GRID} is one picture's, one of {known}", param=GRID)
        info = self._places.picture(ratio, None)
        count = check_rows(ROWS, fields[ROWS], self._hidden_size)
        if count != info.row_count:
            raise BadEmbeddingsError(
                f"{ROWS} has {count} rows; a picture of this model has {info.row_count}:"
                f" {self._places.count} places for tiles of {self._places.tile_rows}",
                param=ROWS,
            )
        return EncodedItem(info, {MAIN_TENSOR: fields[ROWS]})

    def _check_tiles(self, checkpoint: Checkpoint, side: int) -> None:
        """Raises InvalidRequestError where the processor makes other tiles than the tower takes."""
        made = self._processor.size
        places = self._processor.attribute("max_image_tiles")
        if (made.get("height"), made.get("width"), places) != (side, side, self._places.count):
            raise InvalidRequestError(
                f"{checkpoint.folder}: the image processor makes {places} tiles of {dict(made)};"
                f" the tower takes {self._places.count} of {side} x {side}"
            )


class MllamaTower(InOneGo):
    """The vision model and the projector with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        """Args:
        module: as `build_mllama_tower` makes it.
        config: configuration of the whole model.
        """
        self._module: Any = module
        self._places = TilePlaces.of(config)
        self.hidden_size = int(config.get_text_config().hidden_size)

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`."""
        import torch

        pixels, ratios, mask = (torch.from_numpy(array) for array in self.padded(batch))
        weight = self._module.multi_modal_projector.weight
        with torch.inference_mode():
            states = self._module.tower(
                pixel_values=pixels.to(weight.device, weight.dtype),
                aspect_ratio_ids=ratios.to(weight.device),
                aspect_ratio_mask=mask.to(weight.device),
            ).last_hidden_state
            rows = self._module.multi_modal_projector(states)
        return [{MAIN_TENSOR: own.reshape(-1, self.hidden_size)} for own in rows]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. Its attention leaves places without a tile out, which ours cannot."""
        logger.info("torch computes this tower: its tiles are padded")
        return False

    def padded(self, batch: Sequence[Features]) -> tuple[Any, Any, Any]:
        """The batch as the vision model takes it, one picture in each of its prompts.

        Returns:
            Pixels float32 (items, 1, places, channels, side, side), ids int64 (items, 1) and
            which places hold tiles, int64 (items, 1, places).
        """
        shape = (len(batch), 1, self._places.count)
        pixels = np.zeros((*shape, *batch[0].arrays[PIXELS].shape[1:]), np.float32)
        mask = np.zeros(shape, np.int64)
        for item, features in enumerate(batch):
            tiles = features.arrays[PIXELS]
            pixels[item, 0, : len(tiles)] = tiles
            mask[item, 0, : len(tiles)] = 1
        return pixels, np.stack([features.arrays[RATIO] for features in batch]), mask


def build_mllama_tower(config: Any) -> nn.Module:
    """The module of a `MllamaTower`, without weights."""
    from torch import nn
    from transformers import MllamaVisionModel

    vision = config.vision_config
    module = nn.Module()
    module.tower = MllamaVisionModel(vision)
    width = config.get_text_config().hidden_size
    module.multi_modal_projector = nn.Linear(vision.vision_output_dim, width)
    return module
