"""Idefics3: pictures as rows of square tiles and a small copy of the whole, all of a fixed number of rows.

Knows both halves of the family, each made apart. Does not know who runs them.
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
    EncodedItem,
    ExpandedPrompt,
    Features,
    Grid,
    MediaInfo,
    Modality,
    Preprocessor,
    PromptLayout,
    RawTensor,
    Tower,
)
from shared.families.config import model_config
from shared.families.defaults import InOneGo, PicturesAlone, PlainTextFamily
from shared.families.embeddings import check_fields, check_rows, read_grids
from shared.families.grown_rows import even_runs, grow_rows
from shared.families.image_processor import ImageProcessor

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.base import Checkpoint
    from shared.families.weights import Prefixes
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)

ROWS = "image_embeds"
GRID = "image_grid_thw"
SIZE = "size"
SPLITTING = "do_image_splitting"
MAX_SIDE_TILES = 64
"""Tiles along one side of a picture; more is no picture of any checkpoint."""

PREFIXES: Prefixes = {
    "model.vision_model.": ("encoder", "tower."),
    "model.connector.": ("encoder", "connector."),
    "model.text_model.": ("language", "model."),
    "lm_head.": ("language", "lm_head."),
}


class Idefics3Preprocessor(PicturesAlone):
    """Pictures and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._rows_per_tile = rows_per_tile(config)
        self._side = int(config.vision_config.image_size)
        self._patches = (self._side // int(config.vision_config.patch_size)) ** 2
        self._check_tile(checkpoint)

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`.

        Settings: `size` ({"longest_edge": pixels}, at most the checkpoint's own) and
        `do_image_splitting`.
        """
        arrays = self._processor(picture, return_row_col_info=True, **self._checked(settings))
        rows, columns = (max(1, int(np.asarray(arrays[name]).reshape(-1)[0])) for name in ("rows", "cols"))
        # One picture alone: nothing is padded, so every pixel of the mask is set.
        pixels = arrays["pixel_values"][0]
        info = self._info(rows, columns, (picture.height, picture.width))
        return Features(info, {"pixel_values": pixels}, len(pixels) * self._patches)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden) of the tiles and the whole, and
        `image_grid_thw` [3] or [1, 3]: 1, rows and columns of tiles; [1, 1, 1] for a
        picture that is not split.
        """
        check_fields(fields, required=(ROWS, GRID), optional=())
        grids = read_grids(GRID, fields[GRID], merge_size=1)
        if len(grids) != 1 or grids[0].time != 1 or max(grids[0].height, grids[0].width) > MAX_SIDE_TILES:
            raise BadEmbeddingsError(
                f"{GRID} is one picture's: 1, rows and columns of up to {MAX_SIDE_TILES} tiles", param=GRID
            )
        count = check_rows(ROWS, fields[ROWS], self._hidden_size)
        info = self._info(grids[0].height, grids[0].width, None)
        if count != info.row_count:
            raise BadEmbeddingsError(f"{ROWS} has {count} rows; {GRID} implies {info.row_count}", param=ROWS)
        return EncodedItem(info, {MAIN_TENSOR: fields[ROWS]})

    def _info(self, rows: int, columns: int, size: tuple[int, int] | None) -> MediaInfo:
        """The layout of a picture of tiles and the whole; of one tile, the whole alone."""
        tiles = rows * columns
        count = (tiles + 1 if tiles > 1 else 1) * self._rows_per_tile
        return MediaInfo(count, grids=(Grid(1, rows, columns),), image_size=size)

    def _checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a request.

        Raises:
            InvalidRequestError: one is unknown, or asks for more than the checkpoint does.
        """
        own = int(self._processor.size["longest_edge"])
        for name, value in settings.items():
            if name not in (SIZE, SPLITTING):
                raise InvalidRequestError(
                    f"unknown processor setting {name!r}; there are {SIZE} and {SPLITTING}"
                )
            if name == SPLITTING and not isinstance(value, bool):
                raise InvalidRequestError(f"{SPLITTING} is true or false")
            if name == SIZE and not _is_edge(value, own):
                raise InvalidRequestError(f'{SIZE} is {{"longest_edge": pixels}} with 1 to {own} pixels')
        return dict(settings)

    def _check_tile(self, checkpoint: Checkpoint) -> None:
        """Raises InvalidRequestError where the processor makes other tiles than the tower takes."""
        made = int(self._processor.attribute("max_image_size")["longest_edge"])
        if made != self._side:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the image processor makes tiles of {made} pixels, the tower takes"
                f" {self._side}"
            )


def _is_edge(value: Any, most: int) -> bool:
    if not isinstance(value, dict) or set(value) != {"longest_edge"}:
        return False
    edge = value["longest_edge"]
    return isinstance(edge, int) and not isinstance(edge, bool) and 1 <= edge <= most


def rows_per_tile(config: Any) -> int:
    """Rows of a tile: its patches, merged by the connector's factor along both sides."""
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2)


class Idefics3Tower(InOneGo):
    """Vision tower and connector with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, hidden_size: int) -> None:
        self._module: Any = module
        self.hidden_size = hidden_size

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`. Tiles attend to themselves alone."""
        import torch

        with torch.inference_mode():
            pixels = torch.cat([self._pixels(features) for features in batch])
            states = self._module.tower(pixels).last_hidden_state
            rows = self._module.connector(states).flatten(0, 1)
        counts = [features.info.row_count for features in batch]
        return [{MAIN_TENSOR: part} for part in torch.split(rows, counts)]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`."""
        from shared.families.clip_kernels import move_blocks

        return move_blocks(self._module.tower, self._module.tower.config.hidden_act, team)

    def _pixels(self, features: Features) -> torch.Tensor:
        """An item's tiles, (tiles, 3, side, side), where the weights are."""
        import torch

        weight = self._module.tower.embeddings.patch_embedding.weight
        return torch.from_numpy(features.arrays["pixel_values"]).to(weight.device, weight.dtype)


@dataclass(frozen=True, slots=True)
class Idefics3Layout:
    """Writes a picture's tiles between tags and line breaks, and grows each tile's token to its rows.

    The source of the text is transformers' `Idefics3Processor`.

    Attributes:
        image_id: token id of the placeholder, which is also that of a row.
        rows_per_tile: rows of a tile, and of the copy of the whole.
        global_tag: token in front of the whole.
    """

    image_id: int
    rows_per_tile: int
    global_tag: str = "<global-img>"

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return {"image": self.image_id}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        assert modality == "image", modality
        return "<image>"

    def item_text(self, modality: Modality, info: MediaInfo) -> str:
        """See `WritesItems`. One token stands for the rows of each tile."""
        fence = "<fake_token_around_image>"
        whole = f"{fence}{self.global_tag}<image>{fence}"
        (grid,) = info.grids
        if grid.height * grid.width == 1:
            return whole
        lines = (
            "".join(f"{fence}<row_{row + 1}_col_{column + 1}><image>" for column in range(grid.width))
            for row in range(grid.height)
        )
        return "\n".join(lines) + f"\n\n{whole}"

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens)."""
        return grow_rows(token_ids, self.image_id, even_runs(media, self.rows_per_tile))


class Idefics3Family(PlainTextFamily):
    """Factory of the parts of one Idefics3 checkpoint; see `Family`."""

    model_type = "idefics3"
    prefixes = PREFIXES

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return Idefics3Preprocessor(self._checkpoint, model_config(self._checkpoint))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = model_config(self._checkpoint)
        return Idefics3Tower(self._load_tower(config, device, dtype), self.hidden_size())

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = model_config(self._checkpoint)
        return Idefics3Layout(int(config.image_token_id), rows_per_tile(config))

    def _load_tower(self, config: Any, device: torch.device, dtype: torch.dtype) -> nn.Module:
        config.vision_config._attn_implementation = "sdpa"
        return self._encoder_half(lambda: self._build_tower(config), device, dtype)

    def _build_tower(self, config: Any) -> nn.Module:
        from torch import nn
        from transformers.models.idefics3 import modeling_idefics3 as modeling

        tower = modeling.Idefics3VisionTransformer._from_config(config.vision_config)
        return nn.ModuleDict({"tower": tower, "connector": modeling.Idefics3Connector(config)})
