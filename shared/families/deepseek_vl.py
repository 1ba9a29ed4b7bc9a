"""DeepSeek-VL: a SigLIP tower over padded squares, an aligner, a Llama behind them.

Knows both halves of the family, each made apart. Does not know who runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.base import (
    MAIN_TENSOR,
    EncodedItem,
    Features,
    MediaInfo,
    Modality,
    Preprocessor,
    PromptLayout,
    RawTensor,
    Tower,
)
from shared.families.clip_kernels import move_blocks
from shared.families.config import model_config
from shared.families.defaults import InOneGo, PicturesAlone, PlainTextFamily
from shared.families.embeddings import check_fields, check_rows
from shared.families.image_processor import ImageProcessor
from shared.families.plain_layout import PlainLayout

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.base import Checkpoint
    from shared.families.weights import Prefixes
    from shared.kernels.library import Team

ROWS = "image_embeds"

PREFIXES: Prefixes = {
    "model.vision_model.": ("encoder", "tower."),
    "model.vision_model.vision_model.": ("encoder", "tower."),
    "model.aligner.": ("encoder", "aligner."),
    "model.language_model.": ("language", "model."),
    "lm_head.": ("language", "lm_head."),
}
"""As the hub's files name tensors, and as newer transformers save them."""


class DeepseekVLPreprocessor(PicturesAlone):
    """Pictures and precomputed embeddings; see `Preprocessor`."""

    pixel_names: tuple[str, ...] = ("pixel_values",)
    """The processor's arrays, each (1, 3, side, side)."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._row_count = row_count(config)
        self._check_sizes(checkpoint, config)

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. There are no settings."""
        if settings:
            raise InvalidRequestError(f"unknown processor setting {min(settings)!r}; this model has none")
        arrays = self._processor(picture)
        info = MediaInfo(self._row_count, image_size=(picture.height, picture.width))
        return Features(info, {name: arrays[name] for name in self.pixel_names}, self._row_count)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`. Field: `image_embeds` (rows, hidden), as many rows as a picture has."""
        check_fields(fields, required=(ROWS,), optional=())
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        if rows != self._row_count:
            raise BadEmbeddingsError(
                f"{ROWS} has {rows} rows; a picture of this model has {self._row_count}", param=ROWS
            )
        return EncodedItem(MediaInfo(rows), {MAIN_TENSOR: fields[ROWS]})

    def _check_sizes(self, checkpoint: Checkpoint, config: Any) -> None:
        """Raises InvalidRequestError where the processor makes other sizes than the tower takes."""
        from PIL import Image

        side = int(config.vision_config.image_size)
        *_, height, width = self._processor(Image.new("RGB", (side, side // 2)))["pixel_values"].shape
        if (height, width) != (side, side):
            raise InvalidRequestError(
                f"{checkpoint.folder}: the image processor makes {width} x {height} pixels,"
                f" the tower takes {side} x {side}"
            )


def row_count(config: Any) -> int:
    """Rows of a picture: one for each patch of the tower."""
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2)


class DeepseekVLTower(InOneGo):
    """Vision tower and aligner with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, hidden_size: int) -> None:
        self._module: Any = module
        self.hidden_size = hidden_size

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`."""
        import torch

        with torch.inference_mode():
            rows = self._rows(batch)
        return [{MAIN_TENSOR: part} for part in rows]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`."""
        return move_blocks(self._module.tower, self._module.tower.config.hidden_act, team)

    def _rows(self, batch: Sequence[Features]) -> torch.Tensor:
        """(pictures, rows, hidden)."""
        states = self._module.tower(self._pixels(batch, "pixel_values")).last_hidden_state
        rows: torch.Tensor = self._module.aligner(states)
        return rows

    def _pixels(self, batch: Sequence[Features], name: str) -> torch.Tensor:
        """One kind of pixels of all pictures, (pictures, 3, side, side), where the weights are."""
        import torch

        weight = next(self._module.aligner.parameters())
        pixels = torch.from_numpy(np.concatenate([features.arrays[name] for features in batch]))
        return pixels.to(weight.device, weight.dtype)


class DeepseekVLFamily(PlainTextFamily):
    """Factory of the parts of one DeepSeek-VL checkpoint; see `Family`."""

    model_type = "deepseek_vl"
    prefixes = PREFIXES

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return DeepseekVLPreprocessor(self._checkpoint, model_config(self._checkpoint))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = model_config(self._checkpoint)
        config.vision_config._attn_implementation = "sdpa"
        module = self._encoder_half(lambda: _build_tower(config), device, dtype)
        return DeepseekVLTower(module, self.hidden_size())

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        return PlainLayout(int(self._checkpoint.config.get("image_token_id", 100015)), "<image_placeholder>")


def build_siglip(config: Any) -> nn.Module:
    """The SigLIP tower of a configuration, without the wrapper that some versions put around it."""
    from transformers import AutoModel

    tower = AutoModel.from_config(config.vision_config)
    module: nn.Module = getattr(tower, "vision_model", tower)
    return module


def _build_tower(config: Any) -> nn.Module:
    from torch import nn
    from transformers.models.deepseek_vl.modeling_deepseek_vl import DeepseekVLAligner

    return nn.ModuleDict({"tower": build_siglip(config), "aligner": DeepseekVLAligner(config)})
