"""LLaVA-OneVision: LLaVA-NeXT with many more tiles, large pictures shrunk, and videos.

A frame of a video is one tile whose rows are halved along both sides; a newline row
ends the video. Several pictures in a prompt are each cut into tiles, as by transformers'
processor called with a plain list of them.

Knows both halves of the family, each made apart. Does not know who runs them. The rules
for videos are those of `get_video_features` and `apply_pooling` in transformers'
modeling_llava_onevision.py and of its processor, release 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.anyres import Canvases
from shared.families.base import (
    MAIN_TENSOR,
    Checkpoint,
    EncodedItem,
    ExpandedPrompt,
    Features,
    Grid,
    MediaInfo,
    Modality,
    Preprocessor,
    PromptLayout,
    RawTensor,
    Span,
    Tower,
    VideoClip,
)
from shared.families.config import model_config
from shared.families.embeddings import check_fields, check_rows
from shared.families.llava_next import LlavaNextFamily, LlavaNextPreprocessor, LlavaNextTower
from shared.families.parts import cut_steps, part_token_count
from shared.families.video_settings import FrameRecipe, read_recipe, read_video_settings

if TYPE_CHECKING:
    import torch
    from torch import nn

VIDEO_ROWS = "video_embeds"
FRAMES = "frames"
"""The features of a video: its frames, as they were decoded."""

VIDEO_DEFAULTS: Mapping[str, Any] = {
    "resample": 3,
    "size": {"height": 384, "width": 384},
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "do_resize": True,
    "do_center_crop": False,
}
"""Those of transformers' LlavaOnevisionVideoProcessor."""

_ASPECT = re.compile(r"anyres_max_(\d+)")


def halved(side: int) -> int:
    """Rows along a side of a frame, of so many patches."""
    return -(-side // 2)


class LlavaOnevisionPreprocessor(LlavaNextPreprocessor):
    """Pictures, videos and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any, canvases: Canvases) -> None:
        super().__init__(checkpoint, config, canvases)
        settings = read_video_settings(checkpoint, VIDEO_DEFAULTS)
        # For its refusals; the tower reads it for itself.
        read_recipe(settings)
        side = canvases.tile_side
        fits = dict(settings["size"]) == {"height": side, "width": side}
        if not fits or not settings["do_resize"] or settings["do_center_crop"]:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the tower takes frames of {side} x {side};"
                f" the video processor's size is {settings['size']}, or it crops"
            )
        self._frame_side = halved(canvases.patch_side)

    def preprocess_video(self, clip: VideoClip, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. The frames stay as they are: the tower resizes them. No settings."""
        if settings:
            raise InvalidRequestError(f"unknown processor setting {min(settings)!r}; this model has none")
        count, height, width, _ = clip.frames.shape
        info = replace(self._video_info(count), image_size=(height, width))
        return Features(info, {FRAMES: clip.frames}, count * self._canvases.patch_side**2)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden) and `image_sizes` [2] or [1, 2], the
        picture's height and width in pixels; of videos `video_embeds` alone, whose
        last row is the newline.
        """
        if modality == "image":
            return super().accept_embeddings(modality, fields)
        check_fields(fields, required=(VIDEO_ROWS,), optional=())
        rows = check_rows(VIDEO_ROWS, fields[VIDEO_ROWS], self._hidden_size)
        count, over = divmod(rows - 1, self._frame_side**2)
        if over or not count:
            raise BadEmbeddingsError(
                f"{VIDEO_ROWS} has {rows} rows; a video has {self._frame_side**2} a frame and one more",
                param=VIDEO_ROWS,
            )
        return EncodedItem(self._video_info(count), {MAIN_TENSOR: fields[VIDEO_ROWS]})

    def _video_info(self, frame_count: int) -> MediaInfo:
        side = self._frame_side
        return MediaInfo(row_count=frame_count * side**2 + 1, grids=(Grid(frame_count, side, side),))


class LlavaOnevisionTower(LlavaNextTower):
    """Vision tower, projector and newline row with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, config: Any, canvases: Canvases, recipe: FrameRecipe) -> None:
        super().__init__(module, config, canvases)
        self._recipe = recipe

    def split(self, features: Features) -> list[Features]:
        """See `Tower`. A video into groups of frames; the newline row belongs to the last."""
        if FRAMES not in features.arrays:
            return [features]
        (grid,) = features.info.grids
        cost, rows = self._canvases.patch_side**2, grid.height * grid.width
        most = part_token_count(self._module.image_newline.device.type)
        return [
            Features(
                replace(
                    features.info,
                    row_count=(end - start) * rows + (end == grid.time),
                    grids=(Grid(end - start, grid.height, grid.width),),
                ),
                {FRAMES: features.arrays[FRAMES][start:end]},
                (end - start) * cost,
            )
            for start, end in cut_steps(grid.time, cost, most)
        ]

    def _pixels(self, features: Features) -> torch.Tensor:
        from shared.families.frames import frames_to_pixels

        newline = self._module.image_newline
        if FRAMES not in features.arrays:
            return super()._pixels(features).to(newline.device)
        side = self._canvases.tile_side
        return frames_to_pixels(features.arrays[FRAMES], (side, side), self._recipe, newline.device)

    def _packed(self, features: Features, tiles: torch.Tensor) -> torch.Tensor:
        import torch

        from shared.families.tile_packing import resize_plane

        if FRAMES not in features.arrays:
            return super()._packed(features, tiles)
        (grid,) = features.info.grids
        side = self._canvases.patch_side
        planes = tiles.reshape(len(tiles), side, side, -1)
        frames = resize_plane(planes, (grid.height, grid.width))
        rows = frames.flatten(0, 2)
        is_last = features.info.row_count > len(rows)
        return torch.cat([rows, self._module.image_newline[None]]) if is_last else rows


@dataclass(frozen=True, slots=True)
class LlavaOnevisionLayout:
    """Grows `<image>` to a picture's rows and `<video>` to a video's; one rotary axis.

    Attributes:
        ids: token id of the placeholder by modality.
    """

    ids: Mapping[Modality, int]

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return self.ids

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        assert modality in self.ids, modality
        return f"<{modality}>"

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens)."""
        placeholders = set(self.ids.values())
        count = sum(token in placeholders for token in token_ids)
        if count != len(media):
            raise InvalidRequestError(f"the prompt has {count} placeholders for {len(media)} items")
        expanded: list[int] = []
        spans: list[Span] = []
        for token in token_ids:
            if token not in placeholders:
                expanded.append(token)
                continue
            item = len(spans)
            spans.append(Span(item, start=len(expanded), length=media[item].row_count))
            expanded.extend([token] * media[item].row_count)
        positions = np.arange(len(expanded), dtype=np.int64)[np.newaxis]
        return ExpandedPrompt(expanded, spans, positions, next_position=len(expanded))


class LlavaOnevisionFamily(LlavaNextFamily):
    """Factory of the parts of one LLaVA-OneVision checkpoint; see `Family`."""

    model_type = "llava_onevision"
    modalities: tuple[Modality, ...] = ("image", "video")

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        config = model_config(self._checkpoint)
        return LlavaOnevisionPreprocessor(self._checkpoint, config, self._canvases(config))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = model_config(self._checkpoint)
        recipe = read_recipe(read_video_settings(self._checkpoint, VIDEO_DEFAULTS))
        module = self._load_tower(config, device, dtype)
        return LlavaOnevisionTower(module, config, self._canvases(config), recipe)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self._checkpoint.config
        return LlavaOnevisionLayout(
            {
                "image": int(config.get("image_token_index", config.get("image_token_id", 151646))),
                "video": int(config.get("video_token_index", config.get("video_token_id", 151647))),
            }
        )

    def _most_tiles(self, config: Any) -> int:
        """Raises InvalidRequestError where the configuration names no such number."""
        found = _ASPECT.fullmatch(config.vision_aspect_ratio)
        if found is None or not int(found[1]):
            raise InvalidRequestError(
                f"{self._checkpoint.folder}: vision_aspect_ratio is not anyres_max_N,"
                f" but {config.vision_aspect_ratio!r}"
            )
        return int(found[1])

    def _build_projector(self, config: Any) -> nn.Module:
        from transformers.models.llava_onevision.modeling_llava_onevision import (
            LlavaOnevisionMultiModalProjector,
        )

        module: nn.Module = LlavaOnevisionMultiModalProjector(config)
        return module
