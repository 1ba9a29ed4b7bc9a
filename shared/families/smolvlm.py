"""SmolVLM: Idefics3 with a smaller language model, and videos as frames with their times.

Knows what differs from Idefics3: the names of its modules, and videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.base import (
    MAIN_TENSOR,
    EncodedItem,
    Features,
    Grid,
    MediaInfo,
    Modality,
    Preprocessor,
    PromptLayout,
    RawTensor,
    Tower,
    VideoClip,
)
from shared.families.config import model_config
from shared.families.embeddings import check_fields, check_rows, read_seconds
from shared.families.idefics3 import (
    Idefics3Family,
    Idefics3Layout,
    Idefics3Preprocessor,
    Idefics3Tower,
    rows_per_tile,
)
from shared.families.parts import cut_steps, part_token_count
from shared.families.video_settings import FrameRecipe, read_recipe, read_video_settings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.families.base import Checkpoint

FRAMES = "frames"
"""The features of a video: its frames, as they were decoded."""

VIDEO_ROWS = "video_embeds"
TIMES = "timestamps"
DURATION = "duration"

VIDEO_DEFAULTS: Mapping[str, Any] = {
    "resample": 1,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
}
"""Those of transformers' SmolVLMVideoProcessor."""

LONGEST_EDGE = 4096
"""Most pixels along a side of a frame, before it is made a square."""


@dataclass(frozen=True, slots=True)
class FrameSizes:
    """How frames come to their size, in two steps as in transformers' SmolVLMVideoProcessor.

    Attributes:
        longest_edge: longer side after the first step, which keeps the shape.
        side: both sides after the second.
        recipe: filter and normalisation.
    """

    longest_edge: int
    side: int
    recipe: FrameRecipe

    def first(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the first step; the shorter side is made even."""
        edge, shape = min(LONGEST_EDGE, self.longest_edge), width / height
        if width >= height:
            return _even(int(edge / shape)), edge
        return edge, _even(int(edge * shape))


def _even(length: int) -> int:
    return max(1, length + length % 2)


def read_frame_sizes(checkpoint: Checkpoint) -> FrameSizes:
    """What the checkpoint's video processor does to frames.

    Raises:
        InvalidRequestError: a size in other words than these.
    """
    settings = read_video_settings(checkpoint, VIDEO_DEFAULTS)
    size = dict(settings.get("video_sampling", {}).get("video_size") or settings["size"])
    tile = dict(settings["max_image_size"])
    if set(size) != {"longest_edge"} or set(tile) != {"longest_edge"} or not settings["do_resize"]:
        raise InvalidRequestError(f"{checkpoint.folder}: frames have the size {size}, tiles {tile}")
    return FrameSizes(int(size["longest_edge"]), int(tile["longest_edge"]), read_recipe(settings))


class SmolVLMPreprocessor(Idefics3Preprocessor):
    """Pictures, videos and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        super().__init__(checkpoint, config)
        sizes = read_frame_sizes(checkpoint)
        if sizes.side != self._side:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the video processor makes frames of {sizes.side} pixels, the tower"
                f" takes {self._side}"
            )

    def preprocess_video(self, clip: VideoClip, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. The frames stay as they are: the tower resizes them. No settings."""
        if settings:
            raise InvalidRequestError(f"unknown setting of videos {min(settings)!r}; this model has none")
        count, height, width, _ = clip.frames.shape
        # Whole seconds, as the prompt says them: float32, in which they may come back as a
        # field of embeddings, would round 9.9999999 up.
        times = tuple(map(float, map(int, clip.times)))
        info = self._video_info(count, times, float(int(clip.frame_count / clip.frames_per_second)))
        info = replace(info, image_size=(height, width))
        return Features(info, {FRAMES: clip.frames}, count * self._patches)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: those of Idefics3; of videos `video_embeds` (rows, hidden) with
        `timestamps` (frames,) and `duration` [1], both in seconds.
        """
        if modality == "image":
            return super().accept_embeddings(modality, fields)
        check_fields(fields, required=(VIDEO_ROWS, TIMES, DURATION), optional=())
        times, lengths = (read_seconds(name, fields[name]) for name in (TIMES, DURATION))
        if len(lengths) != 1:
            raise BadEmbeddingsError(f"{DURATION} is one number of seconds", param=DURATION)
        rows = check_rows(VIDEO_ROWS, fields[VIDEO_ROWS], self._hidden_size)
        info = self._video_info(len(times), times, lengths[0])
        if rows != info.row_count:
            raise BadEmbeddingsError(
                f"{VIDEO_ROWS} has {rows} rows; {TIMES} implies {info.row_count}", param=VIDEO_ROWS
            )
        return EncodedItem(info, {MAIN_TENSOR: fields[VIDEO_ROWS]})

    def _video_info(self, count: int, times: tuple[float, ...], duration: float) -> MediaInfo:
        grids = (Grid(count, 1, 1),)
        return MediaInfo(count * self._rows_per_tile, grids, timestamps=times, duration=duration)


class SmolVLMTower(Idefics3Tower):
    """Vision tower and connector with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, hidden_size: int, sizes: FrameSizes, patches: int) -> None:
        """Args:
        patches: of a frame.
        """
        super().__init__(module, hidden_size)
        self._sizes = sizes
        self._patches = patches

    def split(self, features: Features) -> list[Features]:
        """See `Tower`. A video into groups of frames."""
        if FRAMES not in features.arrays:
            return [features]
        frames, info = features.arrays[FRAMES], features.info
        rows = info.row_count // len(frames)
        device = self._module.tower.embeddings.patch_embedding.weight.device
        return [
            Features(
                replace(info, row_count=(end - start) * rows, grids=(Grid(end - start, 1, 1),)),
                {FRAMES: frames[start:end]},
                (end - start) * self._patches,
            )
            for start, end in cut_steps(len(frames), self._patches, part_token_count(device.type))
        ]

    def _pixels(self, features: Features) -> torch.Tensor:
        if FRAMES not in features.arrays:
            return super()._pixels(features)
        from shared.families.frames import normalise, resize_frames, to_channels_first

        weight, sizes = self._module.tower.embeddings.patch_embedding.weight, self._sizes
        frames = to_channels_first(features.arrays[FRAMES], weight.device)
        first = sizes.first(*frames.shape[-2:])
        for size in (first, (sizes.side, sizes.side)):
            frames = resize_frames(frames, size, sizes.recipe.resample)
        return normalise(frames.to(weight.device), sizes.recipe).to(weight.dtype)


class SmolVLMLayout(Idefics3Layout):
    """Writes videos as well: what they are, then each frame behind its time.

    The source of the text is transformers' `SmolVLMProcessor`. Vocabularies have no
    token for a video: `<video>` stands in the text alone.
    """

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        return {"image": "<image>", "video": "<video>"}[modality]

    def item_text(self, modality: Modality, info: MediaInfo) -> str:
        """See `WritesItems`."""
        if modality == "image":
            return super().item_text(modality, info)
        from num2words import num2words

        seconds = info.timestamps[-1] if info.duration is None else info.duration
        count, length = len(info.timestamps), timedelta(seconds=int(seconds))
        intro = (
            f"You are provided the following series of {num2words(count)} frames from a {length} [H:MM:SS]"
            " video.\n"
        )
        whole = super().item_text("image", MediaInfo(self.rows_per_tile, (Grid(1, 1, 1),)))
        frames = (f"\nFrame from {_clock(time)}:{whole}" for time in info.timestamps)
        return f"{intro}{''.join(frames)}\n\n"


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


class SmolVLMFamily(Idefics3Family):
    """Factory of the parts of one SmolVLM checkpoint; see `Family`."""

    model_type = "smolvlm"
    modalities: tuple[Modality, ...] = ("image", "video")

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return SmolVLMPreprocessor(self._checkpoint, model_config(self._checkpoint))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = model_config(self._checkpoint)
        vision = config.vision_config
        patches = int((vision.image_size // vision.patch_size) ** 2)
        module = self._load_tower(config, device, dtype)
        return SmolVLMTower(module, self.hidden_size(), read_frame_sizes(self._checkpoint), patches)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = model_config(self._checkpoint)
        return SmolVLMLayout(int(config.image_token_id), rows_per_tile(config))

    def _build_tower(self, config: Any) -> nn.Module:
        from torch import nn
        from transformers.models.smolvlm import modeling_smolvlm as modeling

        tower = modeling.SmolVLMVisionTransformer._from_config(config.vision_config)
        return nn.ModuleDict({"tower": tower, "connector": modeling.SmolVLMConnector(config)})
