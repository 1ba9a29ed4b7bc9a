"""Florence-2's encoder half: a picture of one size through DaViT and its projector.

The rows go in front of the task's words into the text encoder, which stands on the
language model's side as it needs both. Knows pixels and rows. Does not know tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.base import (
    MAIN_TENSOR,
    Checkpoint,
    EncodedItem,
    Features,
    MediaInfo,
    Modality,
    RawTensor,
)
from shared.families.defaults import InOneGo, PicturesAlone
from shared.families.embeddings import check_fields, check_rows, read_size
from shared.families.image_processor import ImageProcessor
from shared.families.tile_tower import join_pixels

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.weights import Prefixes
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)

ROWS = "image_embeds"
SIZES = "image_sizes"
PIXELS = "pixel_values"

PREFIXES: Prefixes = {
    "model.vision_tower.": ("encoder", "tower."),
    "model.multi_modal_projector.": ("encoder", "projector."),
    "model.language_model.": ("language", "model."),
    "model.language_model.encoder.embed_tokens.": ("neither", ""),
    "model.language_model.decoder.embed_tokens.": ("neither", ""),
    "lm_head.": ("language", "lm_head."),
}
"""As transformers saves them, and the checkpoints of florence-community have them."""


class Florence2Preprocessor(PicturesAlone):
    """Pictures and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.vision_config.projection_dim)
        self._row_count = self._count_rows(checkpoint, config)

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. There are no settings."""
        if settings:
            raise InvalidRequestError(f"unknown processor setting {min(settings)!r}; this model has none")
        info = MediaInfo(self._row_count, image_size=(picture.height, picture.width))
        return Features(info, {PIXELS: self._processor(picture)[PIXELS]}, self._row_count)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden); `image_sizes` [2] or [1, 2], the picture's height
        and width, which places in an answer are scaled to, may be there.
        """
        check_fields(fields, required=(ROWS,), optional=(SIZES,))
        size = read_size(SIZES, fields[SIZES]) if SIZES in fields else None
        count = check_rows(ROWS, fields[ROWS], self._hidden_size)
        if count != self._row_count:
            raise BadEmbeddingsError(
                f"{ROWS} has {count} rows; a picture of this model has {self._row_count}", param=ROWS
            )
        return EncodedItem(MediaInfo(count, image_size=size), {MAIN_TENSOR: fields[ROWS]})

    def _count_rows(self, checkpoint: Checkpoint, config: Any) -> int:
        """Rows of every picture.

        Raises:
            InvalidRequestError: the processor promises another number than the tower gives.
        """
        height, width = picture_size(self._processor)
        counted = rows_of_a_picture(config.vision_config, height, width)
        promised = self._processor.attribute("image_seq_length")
        if promised is not None and promised != counted:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the processor's image_seq_length is {promised};"
                f" the tower gives {counted} rows of {width} x {height} pixels"
            )
        return counted


class Florence2Tower(InOneGo):
    """DaViT and the projector with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        """Args:
        module: as `build_florence2_tower` makes it.
        config: configuration of the whole model.
        """
        self._module: Any = module
        self.hidden_size = int(config.vision_config.projection_dim)

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`."""
        import torch

        weight = self._module.projector.image_projection.weight
        with torch.inference_mode():
            plane = self._module.tower(join_pixels(batch).to(weight.device, weight.dtype)).last_hidden_state
            rows = self._module.projector(plane)
        return [{MAIN_TENSOR: own} for own in rows]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. Its blocks attend among channels and hold convolutions, which ours cannot."""
        logger.info("torch computes this tower: it attends among channels")
        return False


def picture_size(processor: ImageProcessor) -> tuple[int, int]:
    """Height and width that every picture is brought to."""
    size = processor.attribute("crop_size") if processor.attribute("do_center_crop") else processor.size
    return int(size["height"]), int(size["width"])


def rows_of_a_picture(vision: Any, height: int, width: int) -> int:
    """One row for the whole and one for each place that the last stage's convolution leaves."""
    stages = zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True)
    for kernel, stride, padding in stages:
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    return int(1 + height * width)


def build_florence2_tower(config: Any) -> nn.Module:
    """The module of a `Florence2Tower`, without weights."""
    from torch import nn
    from transformers.models.florence2.modeling_florence2 import (
        Florence2MultiModalProjector,
        Florence2VisionBackbone,
    )

    module = nn.Module()
    module.tower = Florence2VisionBackbone(config.vision_config)
    module.projector = Florence2MultiModalProjector(config)
    return module
