"""LLaVA: a vision tower with a projector in front of a language model, one rotary axis.

With a CLIP or SigLIP tower all pictures have one size and number of rows; with
Pixtral's they have lines of rows, see `pixtral.py`. Knows both halves of the
family, each made apart. Does not know who runs them.
"""

from __future__ import annotations

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
    Preprocessor,
    PromptLayout,
    RawTensor,
    Tower,
)
from shared.families.config import model_config
from shared.families.defaults import PicturesAlone, PlainTextFamily
from shared.families.embeddings import check_fields, check_rows, read_size
from shared.families.image_processor import ImageProcessor
from shared.families.pixtral import PixtralPreprocessor, PixtralTower, load_pixtral_half
from shared.families.pixtral_layout import PixtralLayout
from shared.families.plain_layout import PlainLayout
from shared.families.tensor_names import TOWER_AND_PROJECTOR
from shared.families.tile_tower import (
    TileTower,
    build_tile_tower,
    check_tile_size,
    join_pixels,
    rows_of_a_tile,
)

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn


ROWS = "image_embeds"
SIZES = "image_sizes"
PIXTRAL = "pixtral"
"""The one known tower without a fixed picture size."""


class LlavaPreprocessor(PicturesAlone):
    """Pictures and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any, row_count: int) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._row_count = row_count
        check_tile_size(checkpoint, self._processor, int(config.vision_config.image_size))

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. There are no settings."""
        if settings:
            raise InvalidRequestError(f"unknown processor setting {min(settings)!r}; this model has none")
        pixels = self._processor(picture)["pixel_values"]
        info = MediaInfo(row_count=self._row_count, image_size=(picture.height, picture.width))
        return Features(info, {"pixel_values": pixels}, self._row_count)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden); `image_sizes` [2] or [1, 2] may be there.
        """
        check_fields(fields, required=(ROWS,), optional=(SIZES,))
        image_size = read_size(SIZES, fields[SIZES]) if SIZES in fields else None
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        if rows != self._row_count:
            raise BadEmbeddingsError(
                f"{ROWS} has {rows} rows; a picture of this model has {self._row_count}", param=ROWS
            )
        return EncodedItem(MediaInfo(row_count=rows, image_size=image_size), {MAIN_TENSOR: fields[ROWS]})


class LlavaTower(TileTower):
    """Vision tower and projector with their weights; see `Tower`."""

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`."""
        import torch

        with torch.inference_mode():
            return [{MAIN_TENSOR: rows} for rows in self.tile_rows(join_pixels(batch))]


class LlavaFamily(PlainTextFamily):
    """Factory of the parts of one LLaVA checkpoint; see `Family`."""

    model_type = "llava"
    prefixes = TOWER_AND_PROJECTOR

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        config = model_config(self._checkpoint)
        if self._has_pixtral():
            return PixtralPreprocessor(self._checkpoint, config, merge_size=1)
        return LlavaPreprocessor(self._checkpoint, config, self._row_count(config))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = model_config(self._checkpoint)
        return (
            self._pixtral(config, device, dtype)
            if self._has_pixtral()
            else self._tiles(config, device, dtype)
        )

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self._checkpoint.config
        image_id = int(config.get("image_token_index", config.get("image_token_id", 32000)))
        return (
            PixtralLayout.of(self._checkpoint, image_id)
            if self._has_pixtral()
            else PlainLayout(image_id, "<image>")
        )

    def _has_pixtral(self) -> bool:
        vision = self._checkpoint.config.get("vision_config")
        return isinstance(vision, dict) and vision.get("model_type") == PIXTRAL

    def _row_count(self, config: Any) -> int:
        return rows_of_a_tile(self._checkpoint, config, also=PIXTRAL)

    def _tiles(self, config: Any, device: torch.device, dtype: torch.dtype) -> Tower:
        config.vision_config._attn_implementation = "sdpa"
        self._row_count(config)  # refuses a kind of tower that is not known
        module = self._encoder_half(lambda: _build_tower(config), device, dtype)
        return LlavaTower(module, config)

    def _pixtral(self, config: Any, device: torch.device, dtype: torch.dtype) -> Tower:
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        if config.vision_feature_select_strategy != "full":
            raise InvalidRequestError(
                f"{self._checkpoint.folder}: the rows of a {PIXTRAL} tower are all taken;"
                f" vision_feature_select_strategy is {config.vision_feature_select_strategy!r}"
            )
        module = load_pixtral_half(
            LlavaMultiModalProjector, config, self._checkpoint, self.prefixes, device, dtype
        )
        return PixtralTower(module, config, projector_takes_sizes=False)


def _build_tower(config: Any) -> nn.Module:
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    return build_tile_tower(config, LlavaMultiModalProjector(config))
