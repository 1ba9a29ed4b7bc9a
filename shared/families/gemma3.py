"""Gemma 3: square pictures of a fixed number of rows, cut into crops on demand.

The rows of a picture see each other in both directions, so its spans are
unsplittable. Knows both halves of the family, each made apart. Does not know who
runs them.
"""

from __future__ import annotations

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
from shared.families.clip_kernels import move_blocks
from shared.families.config import model_config
from shared.families.defaults import InOneGo, PicturesAlone, PlainTextFamily
from shared.families.embeddings import check_fields, check_rows
from shared.families.grown_rows import even_runs, grow_rows
from shared.families.image_processor import ImageProcessor
from shared.families.tensor_names import TOWER_AND_PROJECTOR

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.base import Checkpoint
    from shared.kernels.library import Team

ROWS = "image_embeds"

PAN_AND_SCAN = "do_pan_and_scan"
COUNTS = ("pan_and_scan_min_crop_size", "pan_and_scan_max_num_crops")
RATIO = "pan_and_scan_min_ratio_to_activate"
UNASKED: Mapping[str, Any] = {PAN_AND_SCAN: False, COUNTS[0]: 256, COUNTS[1]: 4, RATIO: 1.2}
"""What holds where a request says nothing: the defaults of transformers' `Gemma3Processor`, which go
before the checkpoint's own image processor there."""

MAX_CROPS = 16
"""Most crops that a request may ask for; each costs as much as a picture."""


class Gemma3Preprocessor(PicturesAlone):
    """Pictures and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._rows_per_crop = int(config.mm_tokens_per_image)
        self._patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        self._check_size(checkpoint, int(config.vision_config.image_size))

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`.

        Settings: `do_pan_and_scan` and its `pan_and_scan_min_crop_size`,
        `pan_and_scan_max_num_crops` and `pan_and_scan_min_ratio_to_activate`.
        """
        arrays = self._processor(picture, **_checked_settings(settings))
        pixels = arrays["pixel_values"]
        info = self._info(len(pixels), (picture.height, picture.width))
        return Features(info, {"pixel_values": pixels}, len(pixels) * self._patches)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden), as many rows as a picture has, or that
        many for the picture and for each of its crops.
        """
        check_fields(fields, required=(ROWS,), optional=())
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        crops, rest = divmod(rows, self._rows_per_crop)
        if rest or not 1 <= crops <= MAX_CROPS + 1:
            raise BadEmbeddingsError(
                f"{ROWS} has {rows} rows; a picture of this model has {self._rows_per_crop}, and as many"
                f" for each of up to {MAX_CROPS} crops",
                param=ROWS,
            )
        return EncodedItem(self._info(crops, None), {MAIN_TENSOR: fields[ROWS]})

    def _info(self, crops: int, size: tuple[int, int] | None) -> MediaInfo:
        """The layout of a picture that is shown in `crops` pieces, the whole of it first."""
        return MediaInfo(crops * self._rows_per_crop, grids=(Grid(1, 1, crops),), image_size=size)

    def _check_size(self, checkpoint: Checkpoint, side: int) -> None:
        """Raises InvalidRequestError where the processor makes other sizes than the tower takes."""
        from PIL import Image

        whole = self._processor(Image.new("RGB", (2 * side, side)), **UNASKED)
        *_, height, width = whole["pixel_values"].shape
        if (height, width) != (side, side):
            raise InvalidRequestError(
                f"{checkpoint.folder}: the image processor makes {width} x {height} pixels,"
                f" the tower takes {side} x {side}"
            )


def _checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a request, of the right types and within bounds.

    Raises:
        InvalidRequestError: one is unknown or out of bounds.
    """
    known = (PAN_AND_SCAN, *COUNTS, RATIO)
    for name, value in settings.items():
        if name not in known:
            raise InvalidRequestError(f"unknown processor setting {name!r}; there are {', '.join(known)}")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if name == PAN_AND_SCAN and not isinstance(value, bool):
            raise InvalidRequestError(f"{name} is true or false")
        if name in COUNTS and not (whole and value >= 1):
            raise InvalidRequestError(f"{name} is a whole number of at least 1")
        if name == COUNTS[1] and value > MAX_CROPS:
            raise InvalidRequestError(f"{name} is at most {MAX_CROPS}")
        if name == RATIO and not ((whole or isinstance(value, float)) and value >= 1):
            raise InvalidRequestError(f"{name} is a number of at least 1")
    return {**UNASKED, **settings}


class Gemma3Tower(InOneGo):
    """Vision tower and projector with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, hidden_size: int) -> None:
        self._module: Any = module
        self.hidden_size = hidden_size

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`."""
        import torch

        weight = self._module.projector.mm_input_projection_weight
        pixels = torch.from_numpy(np.concatenate([features.arrays["pixel_values"] for features in batch]))
        with torch.inference_mode():
            states = self._module.tower(pixels.to(weight.device, weight.dtype)).last_hidden_state
            rows = self._module.projector(states).flatten(0, 1)
        counts = [features.info.row_count for features in batch]
        return [{MAIN_TENSOR: part} for part in torch.split(rows, counts)]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`."""
        return move_blocks(self._module.tower, self._module.tower.config.hidden_act, team)


@dataclass(frozen=True, slots=True)
class Gemma3Layout:
    """Writes a picture between line breaks and tags, and grows its soft token to rows.

    The source of the text is transformers' `Gemma3Processor`.

    Attributes:
        begin_id: token id that a template writes for a picture.
        soft_id: token id of a row.
        rows_per_crop: rows of a picture, and of each of its crops.
        begin, soft, end: texts of the tokens before, of and after the rows.
    """

    begin_id: int
    soft_id: int
    rows_per_crop: int
    begin: str = "<start_of_image>"
    soft: str = "<image_soft_token>"
    end: str = "<end_of_image>"

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return {"image": self.begin_id}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        assert modality == "image", modality
        return self.begin

    def item_text(self, modality: Modality, info: MediaInfo) -> str:
        """See `WritesItems`. One soft token stands for the rows of the picture, and one for each crop's."""
        once = f"\n\n{self.begin}{self.soft}{self.end}\n\n"
        crops = self._crop_count(info) - 1
        if not crops:
            return once
        shown = " ".join([once] * crops)
        return f"Here is the original image {once} and here are some crops to help you see better {shown}"

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens)."""
        runs = even_runs(media, self.rows_per_crop)
        return grow_rows(token_ids, self.soft_id, runs, splittable=False)

    def _crop_count(self, info: MediaInfo) -> int:
        crops, rest = divmod(info.row_count, self.rows_per_crop)
        if rest or not crops:
            raise InvalidRequestError(
                f"an item has {info.row_count} rows; a picture of this model has {self.rows_per_crop}"
            )
        return crops


class Gemma3Family(PlainTextFamily):
    """Factory of the parts of one Gemma 3 checkpoint; see `Family`."""

    model_type = "gemma3"
    prefixes = TOWER_AND_PROJECTOR

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return Gemma3Preprocessor(self._checkpoint, model_config(self._checkpoint))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = model_config(self._checkpoint)
        config.vision_config._attn_implementation = "sdpa"
        module = self._encoder_half(lambda: _build_tower(config), device, dtype)
        return Gemma3Tower(module, self.hidden_size())

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self._checkpoint.config
        return Gemma3Layout(
            begin_id=int(config.get("boi_token_index", config.get("boi_token_id", 255999))),
            soft_id=int(config.get("image_token_index", config.get("image_token_id", 262144))),
            rows_per_crop=int(config.get("mm_tokens_per_image", 256)),
        )


def _build_tower(config: Any) -> nn.Module:
    from torch import nn
    from transformers import AutoModel
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

    tower = AutoModel.from_config(config.vision_config)
    # Weights are stored without the wrapper that some versions put around the tower.
    return nn.ModuleDict(
        {"tower": getattr(tower, "vision_model", tower), "projector": Gemma3MultiModalProjector(config)}
    )
