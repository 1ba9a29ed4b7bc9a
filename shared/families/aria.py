"""Aria: square pictures of one of two sizes, a projector of learned queries, a mixture of experts.

Knows both halves of the family, each made apart. Does not know who runs them.
"""

from __future__ import annotations

import json
import logging
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
from shared.families.config import model_config
from shared.families.defaults import InOneGo, PicturesAlone, PlainTextFamily
from shared.families.embeddings import check_fields, check_rows
from shared.families.image_processor import ImageProcessor
from shared.families.plain_layout import PlainLayout
from shared.families.tensor_names import TOWER_AND_PROJECTOR

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.base import Checkpoint
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)

ROWS = "image_embeds"
SIDE = "max_image_size"
SPLIT = "split_image"
SIZE_CONVERSION: Mapping[int, int] = {490: 128, 980: 256}
"""Rows of a square by its side in pixels, where the processor's file says nothing."""

UNASKED: Mapping[str, Any] = {SIDE: 980, SPLIT: False}
"""What holds where a request says nothing: the defaults of transformers' `AriaProcessor`, which go before
the checkpoint's own image processor there."""

MAX_CROPS = 32
"""Most squares that a picture is cut into; more is a checkpoint that nobody has."""

RENAMED: Mapping[str, str] = {
    ".mlp.experts.fc1.weight": ".mlp.experts.gate_up_proj",
    ".mlp.experts.fc2.weight": ".mlp.experts.down_proj",
}
"""Ends of names in the hub's files, and what newer transformers call them."""


class AriaPreprocessor(PicturesAlone):
    """Pictures and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._row_counts = read_row_counts(checkpoint)
        self._patch_size = int(config.vision_config.patch_size)
        self._check_queries(checkpoint, config)

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`.

        Settings: `max_image_size`, one of the sides that the checkpoint knows, and
        `split_image`.
        """
        arrays = self._processor(picture, **self._checked(settings))
        pixels, mask = arrays["pixel_values"], arrays["pixel_mask"]
        crops, side = len(pixels), pixels.shape[-1]
        info = MediaInfo(crops * self._row_counts[side], image_size=(picture.height, picture.width))
        cost = crops * (side // self._patch_size) ** 2
        return Features(info, {"pixel_values": pixels, "pixel_mask": mask}, cost)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden), as many rows as squares of one size have.
        """
        check_fields(fields, required=(ROWS,), optional=())
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        if not any(rows % count == 0 and rows // count <= MAX_CROPS for count in self._row_counts.values()):
            counts = " or ".join(str(count) for count in sorted(self._row_counts.values()))
            raise BadEmbeddingsError(
                f"{ROWS} has {rows} rows; a picture of this model has {counts}, or a multiple of it",
                param=ROWS,
            )
        return EncodedItem(MediaInfo(rows), {MAIN_TENSOR: fields[ROWS]})

    def _checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a request.

        Raises:
            InvalidRequestError: one is unknown, or no side of this checkpoint.
        """
        sides = sorted(self._row_counts)
        for name, value in settings.items():
            if name not in (SIDE, SPLIT):
                raise InvalidRequestError(f"unknown processor setting {name!r}; there are {SIDE} and {SPLIT}")
            if name == SPLIT and not isinstance(value, bool):
                raise InvalidRequestError(f"{SPLIT} is true or false")
            if name == SIDE and (isinstance(value, bool) or value not in sides):
                raise InvalidRequestError(f"{SIDE} is {' or '.join(map(str, sides))}")
        return {**UNASKED, **settings}

    def _check_queries(self, checkpoint: Checkpoint, config: Any) -> None:
        """Raises InvalidRequestError where projector and processor count rows differently."""
        for side, rows in self._row_counts.items():
            patches = (side // self._patch_size) ** 2
            made = config.projector_patch_to_query_dict.get(patches)
            if made != rows:
                raise InvalidRequestError(
                    f"{checkpoint.folder}: the processor gives a square of {side} pixels {rows} rows, the"
                    f" projector {made} for its {patches} patches"
                )


def read_row_counts(checkpoint: Checkpoint) -> dict[int, int]:
    """Rows of a square by its side in pixels, from the processor's file.

    Raises:
        InvalidRequestError: the file holds something else.
    """
    file = checkpoint.folder / "processor_config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        sides = found.get("size_conversion") or SIZE_CONVERSION
        return {int(side): int(rows) for side, rows in sides.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidRequestError(f"{file} is not valid: {error}") from error


class AriaTower(InOneGo):
    """Vision tower and projector with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        self._module: Any = module
        self._layer = int(config.vision_feature_layer)
        self._patch_size = int(config.vision_config.patch_size)
        self.hidden_size = int(config.get_text_config().hidden_size)

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`. Squares of one side run together."""
        encoded: dict[int, torch.Tensor] = {}
        sides = [features.arrays["pixel_values"].shape[-1] for features in batch]
        for side in set(sides):
            places = [place for place, other in enumerate(sides) if other == side]
            rows = self._encode_squares([batch[place] for place in places])
            encoded.update(zip(places, rows, strict=True))
        return [{MAIN_TENSOR: encoded[place]} for place in range(len(batch))]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. Its attention leaves padding out, which ours cannot."""
        logger.info("torch computes this tower: its pictures are padded")
        return False

    def _encode_squares(self, batch: Sequence[Features]) -> list[torch.Tensor]:
        import torch

        weight = self._module.projector.query
        pixels = torch.from_numpy(np.concatenate([features.arrays["pixel_values"] for features in batch]))
        mask = torch.from_numpy(np.concatenate([features.arrays["pixel_mask"] for features in batch]))
        patches = self._seen_patches(mask.to(weight.device))
        with torch.inference_mode():
            states = self._module.tower(
                pixels.to(weight.device, weight.dtype),
                patch_attention_mask=patches,
                output_hidden_states=True,
            ).hidden_states[self._layer]
            rows = self._module.projector(states, attn_mask=~patches.flatten(1)).flatten(0, 1)
        return list(torch.split(rows, [features.info.row_count for features in batch]))

    def _seen_patches(self, mask: torch.Tensor) -> torch.Tensor:
        """From pixels (squares, side, side) that are no padding to patches with any: bool (squares, n, n)."""
        size = self._patch_size
        squares, side, _ = mask.shape
        count = side // size
        cut = mask[:, : count * size, : count * size].reshape(squares, count, size, count, size)
        return cut.any(dim=4).any(dim=2)


class AriaFamily(PlainTextFamily):
    """Factory of the parts of one Aria checkpoint; see `Family`."""

    model_type = "aria"
    prefixes = TOWER_AND_PROJECTOR
    renamed = RENAMED

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return AriaPreprocessor(self._checkpoint, model_config(self._checkpoint))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = model_config(self._checkpoint)
        config.vision_config._attn_implementation = "sdpa"
        module = self._encoder_half(lambda: _build_tower(config), device, dtype)
        return AriaTower(module, config)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self._checkpoint.config
        image_id = int(config.get("image_token_index", config.get("image_token_id", 9)))
        return PlainLayout(image_id, "<fim_prefix><|img|><fim_suffix>")


def _build_tower(config: Any) -> nn.Module:
    from torch import nn
    from transformers import AutoModel
    from transformers.models.aria.modeling_aria import AriaProjector

    return nn.ModuleDict(
        {"tower": AutoModel.from_config(config.vision_config), "projector": AriaProjector(config)}
    )
