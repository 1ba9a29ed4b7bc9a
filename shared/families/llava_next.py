"""LLaVA-NeXT: LLaVA over the tiles of a picture, as many as its size asks for.

Knows both halves of the family, each made apart. The newline row that ends each
line of a picture belongs to the encoder half. Does not know who runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.anyres import Canvases, canvases
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
from shared.families.llava import ROWS, SIZES
from shared.families.plain_layout import PlainLayout
from shared.families.tensor_names import TOWER_AND_PROJECTOR
from shared.families.tile_tower import (
    TileTower,
    build_tile_tower,
    check_tile_size,
    rows_of_a_tile,
)

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.weights import Prefixes

PIXELS = "pixel_values"

PREFIXES: Prefixes = {
    **TOWER_AND_PROJECTOR,
    "image_newline": ("encoder", "image_newline"),
    "model.image_newline": ("encoder", "image_newline"),
}
"""As the hub's files name tensors, and as newer transformers save them."""


class LlavaNextPreprocessor(PicturesAlone):
    """Pictures and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any, canvases: Canvases) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._canvases = canvases
        check_tile_size(checkpoint, self._processor, canvases.tile_side)
        if [tuple(size) for size in self._processor.attribute("image_grid_pinpoints")] != [*canvases.sizes]:
            raise InvalidRequestError(
                f"{checkpoint.folder}: config.json and the image processor differ in image_grid_pinpoints"
            )

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. There are no settings."""
        if settings:
            raise InvalidRequestError(f"unknown processor setting {min(settings)!r}; this model has none")
        arrays = self._processor(picture)
        size = (picture.height, picture.width)
        packing = self._canvases.packing(size)
        info = MediaInfo(row_count=packing.row_count, image_size=size)
        return Features(info, arrays, packing.tile_count * packing.whole_rows)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden) and `image_sizes` [2] or [1, 2], the
        picture's height and width in pixels.
        """
        check_fields(fields, required=(ROWS, SIZES), optional=())
        size = read_size(SIZES, fields[SIZES])
        implied = self._canvases.packing(size).row_count
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        if rows != implied:
            raise BadEmbeddingsError(f"{ROWS} has {rows} rows; {SIZES} implies {implied}", param=ROWS)
        return EncodedItem(MediaInfo(row_count=rows, image_size=size), {MAIN_TENSOR: fields[ROWS]})


class LlavaNextTower(TileTower):
    """Vision tower, projector and newline row with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, config: Any, canvases: Canvases) -> None:
        super().__init__(module, config)
        self._canvases = canvases

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`. The tiles of all items go through the tower together."""
        import torch

        with torch.inference_mode():
            pixels = [self._pixels(features) for features in batch]
            rows = torch.split(self.tile_rows(torch.cat(pixels)), [len(tiles) for tiles in pixels])
            return [
                {MAIN_TENSOR: self._packed(features, tiles)}
                for features, tiles in zip(batch, rows, strict=True)
            ]

    def _pixels(self, features: Features) -> torch.Tensor:
        """Float32 (tiles, channels, side, side) of one item."""
        import torch

        return torch.from_numpy(features.arrays[PIXELS][0])

    def _packed(self, features: Features, tiles: torch.Tensor) -> torch.Tensor:
        """(tiles, patches, hidden) of one item to its rows."""
        from shared.families.tile_packing import pack_tiles

        assert features.info.image_size is not None, "the preprocessor gives each picture's size"
        packing = self._canvases.packing(features.info.image_size)
        return pack_tiles(tiles, packing, self._module.image_newline)


class LlavaNextFamily(PlainTextFamily):
    """Factory of the parts of one LLaVA-NeXT checkpoint; see `Family`."""

    model_type = "llava_next"
    prefixes = PREFIXES

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        config = model_config(self._checkpoint)
        return LlavaNextPreprocessor(self._checkpoint, config, self._canvases(config))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = model_config(self._checkpoint)
        return LlavaNextTower(self._load_tower(config, device, dtype), config, self._canvases(config))

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self._checkpoint.config
        image_id = int(config.get("image_token_index", config.get("image_token_id", 32000)))
        return PlainLayout(image_id, "<image>")

    def _most_tiles(self, config: Any) -> int | None:
        """Tiles that a picture's rows may be worth before they are shrunk; None: any number."""
        return None

    def _canvases(self, config: Any) -> Canvases:
        """Raises InvalidRequestError where tower and canvases do not fit together."""
        vision = config.vision_config
        side = int(vision.image_size) // int(vision.patch_size)
        if rows_of_a_tile(self._checkpoint, config) != side**2:
            raise InvalidRequestError(
                f"{self._checkpoint.folder}: with vision_feature_select_strategy"
                f" {config.vision_feature_select_strategy!r} a tile has other rows than its patches"
            )
        try:
            return canvases(
                config.image_grid_pinpoints, int(vision.image_size), side, self._most_tiles(config)
            )
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"{self._checkpoint.folder}: image_grid_pinpoints: {error}") from error

    def _load_tower(self, config: Any, device: torch.device, dtype: torch.dtype) -> nn.Module:
        config.vision_config._attn_implementation = "sdpa"
        return self._encoder_half(lambda: self._build_tower(config), device, dtype)

    def _build_tower(self, config: Any) -> nn.Module:
        import torch
        from torch import nn

        newline = nn.Parameter(torch.empty(config.get_text_config().hidden_size))
        return build_tile_tower(config, self._build_projector(config), image_newline=newline)

    def _build_projector(self, config: Any) -> nn.Module:
        from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

        module: nn.Module = LlavaNextMultiModalProjector(config)
        return module
