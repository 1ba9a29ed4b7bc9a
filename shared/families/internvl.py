"""InternVL: pictures as square tiles and a small copy of the whole, and videos of a tile a frame.

Each tile has the same number of rows. A picture's rows stand between one pair of
tags; those of a video's frames each between their own, behind the frame's number.

Knows both halves of the family, each made apart. Does not know who runs them. The
rules are those of `InternVLProcessor`, `InternVLVideoProcessor` and
`InternVLModel.get_image_features` in transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from shared.families.defaults import PlainTextFamily
from shared.families.embeddings import check_fields, check_rows
from shared.families.image_processor import ImageProcessor
from shared.families.internvl_layout import InternVLLayout
from shared.families.parts import cut_steps, part_token_count
from shared.families.tensor_names import TOWER_AND_PROJECTOR
from shared.families.tile_tower import check_tile_size
from shared.families.video_settings import FrameRecipe, read_recipe, read_video_settings

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.base import Checkpoint
    from shared.kernels.library import Team

PIXELS = "pixel_values"
FRAMES = "frames"
"""The features of a video: its frames, as they were decoded."""

CROPPING = "crop_to_patches"
COUNTS: Mapping[str, str] = {"min_dynamic_patch": "min_patches", "max_dynamic_patch": "max_patches"}
"""InternVL's own names of settings, and those of transformers' image processor."""

VIDEO_DEFAULTS: Mapping[str, Any] = {
    "resample": 3,
    "size": {"height": 384, "width": 384},
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "do_resize": True,
    "do_center_crop": False,
}
"""Those of transformers' InternVLVideoProcessor."""

TEXT_MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Language models whose layers need nothing but attention and positions."""


@dataclass(frozen=True, slots=True)
class TileShape:
    """What every tile has.

    Attributes:
        side: height and width in pixels.
        patch_side: patches along a side.
        merge: patches along a side that become one row.
    """

    side: int
    patch_side: int
    merge: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: Any) -> TileShape:
        """Reads a configuration.

        Raises:
            InvalidRequestError: tiles are not square, or patches do not merge evenly.
        """
        vision = config.vision_config
        (height, width), (patch_height, patch_width) = vision.image_size, vision.patch_size
        merge = round(1 / config.downsample_ratio)
        shape = cls(int(height), int(height // patch_height), merge)
        square = height == width and patch_height == patch_width
        if not square or merge * config.downsample_ratio != 1 or shape.patch_side % merge:
            raise InvalidRequestError(
                f"{checkpoint.folder}: tiles of {width} x {height} pixels in patches of {patch_width} x"
                f" {patch_height} cannot be downsampled by {config.downsample_ratio}"
            )
        return shape

    @property
    def patch_count(self) -> int:
        """Patches of a tile."""
        return self.patch_side**2

    @property
    def row_count(self) -> int:
        """Rows of a tile."""
        return (self.patch_side // self.merge) ** 2

    def picture(self, tiles: int, size: tuple[int, int] | None) -> MediaInfo:
        """The layout of a picture of `tiles`, the copy of the whole included: one run of rows."""
        return MediaInfo(tiles * self.row_count, grids=(Grid(1, 1, tiles),), image_size=size)

    def video(self, frames: int, size: tuple[int, int] | None) -> MediaInfo:
        """The layout of a video: a run of rows for each frame."""
        return MediaInfo(frames * self.row_count, grids=(Grid(frames, 1, 1),), image_size=size)


class InternVLPreprocessor:
    """Pictures, videos and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any, tile: TileShape) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._tile = tile
        check_tile_size(checkpoint, self._processor, tile.side)
        settings = read_video_settings(checkpoint, VIDEO_DEFAULTS)
        # For its refusals; the tower reads it for itself.
        read_recipe(settings)
        fits = dict(settings["size"]) == {"height": tile.side, "width": tile.side}
        if not fits or not settings["do_resize"] or settings["do_center_crop"]:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the tower takes frames of {tile.side} x {tile.side};"
                f" the video processor's size is {settings['size']}, or it crops"
            )

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`.

        Settings: `crop_to_patches`, and `min_dynamic_patch` and `max_dynamic_patch`,
        the fewest and the most tiles without the copy of the whole, up to the
        checkpoint's own most.
        """
        pixels = self._processor(picture, **self._checked(settings))[PIXELS]
        info = self._tile.picture(len(pixels), (picture.height, picture.width))
        return Features(info, {PIXELS: pixels}, len(pixels) * self._tile.patch_count)

    def preprocess_video(self, clip: VideoClip, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. The frames stay as they are: the tower resizes them. No settings."""
        if settings:
            raise InvalidRequestError(
                f"unknown processor setting {min(settings)!r}; a video of this model has none"
            )
        count, height, width, _ = clip.frames.shape
        info = self._tile.video(count, (height, width))
        return Features(info, {FRAMES: clip.frames}, count * self._tile.patch_count)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` or `video_embeds` (rows, hidden) alone; how many tiles
        or frames there are follows from the rows.
        """
        name = f"{modality}_embeds"
        check_fields(fields, required=(name,), optional=())
        rows = check_rows(name, fields[name], self._hidden_size)
        count, over = divmod(rows, self._tile.row_count)
        if over:
            unit = {"image": "tile of a picture", "video": "frame"}[modality]
            raise BadEmbeddingsError(
                f"{name} has {rows} rows; each {unit} of this model has {self._tile.row_count}", param=name
            )
        lay_out = self._tile.picture if modality == "image" else self._tile.video
        return EncodedItem(lay_out(count, None), {MAIN_TENSOR: fields[name]})

    def _checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a request in transformers' names.

        Raises:
            InvalidRequestError: one is unknown or out of bounds.
        """
        most = int(self._processor.attribute(COUNTS["max_dynamic_patch"]))
        # transformers' `InternVLProcessor` cuts, whatever the file of the image processor says.
        chosen: dict[str, Any] = {CROPPING: True}
        for name, value in settings.items():
            if name == CROPPING:
                if not isinstance(value, bool):
                    raise InvalidRequestError(f"{CROPPING} is true or false")
            elif name not in COUNTS:
                raise InvalidRequestError(
                    f"unknown processor setting {name!r}; there are {', '.join([CROPPING, *COUNTS])}"
                )
            elif not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise InvalidRequestError(f"{name} is a whole number from 1 to {most}")
            chosen[COUNTS.get(name, name)] = value
        least, most = (
            int(chosen.get(name, self._processor.attribute(name))) for name in ("min_patches", "max_patches")
        )
        if least > most:
            raise InvalidRequestError(
                f"min_dynamic_patch, here {least}, is at most max_dynamic_patch, here {most}"
            )
        return chosen


class InternVLTower:
    """Vision tower and projector with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, config: Any, tile: TileShape, recipe: FrameRecipe) -> None:
        self._module: Any = module
        self._layer = int(config.vision_feature_layer)
        self._tile = tile
        self._recipe = recipe
        self.hidden_size = int(config.get_text_config().hidden_size)

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`. Tiles and frames attend to themselves alone."""
        import torch

        with torch.inference_mode():
            pixels = torch.cat([self._pixels(features) for features in batch])
            states = self._states(pixels.to(self._weight.dtype))
            rows = self._module.projector(self._merged(states)).flatten(0, 1)
        counts = [features.info.row_count for features in batch]
        return [{MAIN_TENSOR: part} for part in torch.split(rows, counts)]

    def split(self, features: Features) -> list[Features]:
        """See `Tower`. A video into groups of frames."""
        if FRAMES not in features.arrays:
            return [features]
        frames, cost = features.arrays[FRAMES], self._tile.patch_count
        most = part_token_count(self._weight.device.type)
        size = features.info.image_size
        return [
            Features(
                self._tile.video(end - start, size),
                {FRAMES: frames[start:end]},
                (end - start) * cost,
            )
            for start, end in cut_steps(len(frames), cost, most)
        ]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. The blocks alone."""
        from shared.families.internvl_kernels import move_blocks

        return move_blocks(self._module.tower, team)

    @property
    def _weight(self) -> torch.Tensor:
        weight: torch.Tensor = self._module.projector.linear_1.weight
        return weight

    def _pixels(self, features: Features) -> torch.Tensor:
        """An item's tiles or frames, float32 (tiles, 3, side, side), where the weights are."""
        import torch

        from shared.families.frames import frames_to_pixels

        device = self._weight.device
        if FRAMES not in features.arrays:
            return torch.from_numpy(features.arrays[PIXELS]).to(device)
        side = self._tile.side
        return frames_to_pixels(features.arrays[FRAMES], (side, side), self._recipe, device)

    def _states(self, pixels: torch.Tensor) -> torch.Tensor:
        """(tiles, 1 + patches, width) of the layer that the configuration names."""
        if self._layer == -1:
            last: torch.Tensor = self._module.tower(pixels).last_hidden_state
            return last
        output = self._module.tower(pixels, output_hidden_states=[self._layer])
        states: torch.Tensor = output.hidden_states[self._layer]
        return states

    def _merged(self, states: torch.Tensor) -> torch.Tensor:
        """Leaves out the class token and joins squares of patches: (tiles, rows, width x merge^2)."""
        merge, side = self._tile.merge, self._tile.patch_side // self._tile.merge
        squares = states[:, 1:].reshape(len(states), side, merge, side, merge, states.shape[-1])
        return squares.transpose(2, 3).reshape(len(states), side * side, -1)


class InternVLFamily(PlainTextFamily):
    """Factory of the parts of one InternVL checkpoint; see `Family`."""

    model_type = "internvl"
    prefixes = TOWER_AND_PROJECTOR
    modalities: tuple[Modality, ...] = ("image", "video")

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        config = self._config()
        return InternVLPreprocessor(self._checkpoint, config, TileShape.of(self._checkpoint, config))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = self._config()
        tile = TileShape.of(self._checkpoint, config)
        recipe = read_recipe(read_video_settings(self._checkpoint, VIDEO_DEFAULTS))
        config.vision_config._attn_implementation = "sdpa"
        module = self._encoder_half(lambda: _build_tower(config), device, dtype)
        return InternVLTower(module, config, tile, recipe)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        return InternVLLayout(int(self._checkpoint.config.get("image_token_id", 151667)))

    def _config(self) -> Any:
        """The configuration.

        Raises:
            InvalidRequestError: it names another tower, other rows of it or a language
                model that is not known here.
        """
        config = model_config(self._checkpoint)
        known: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
            "vision_config.model_type": (config.vision_config.model_type, ("internvl_vision",)),
            "vision_feature_select_strategy": (config.vision_feature_select_strategy, ("default",)),
            "text_config.model_type": (config.get_text_config().model_type, TEXT_MODELS),
        }
        for name, (value, values) in known.items():
            if value not in values:
                raise InvalidRequestError(
                    f"{self._checkpoint.folder}: {name} is {value!r}; known are {', '.join(values)}"
                )
        if not isinstance(config.vision_feature_layer, int):
            raise InvalidRequestError(
                f"{self._checkpoint.folder}: vision_feature_layer is {config.vision_feature_layer!r};"
                " it names one layer"
            )
        return config


def _build_tower(config: Any) -> nn.Module:
    from torch import nn
    from transformers.models.internvl import modeling_internvl as modeling

    return nn.ModuleDict(
        {
            "tower": modeling.InternVLVisionModel._from_config(config.vision_config),
            "projector": modeling.InternVLMultiModalProjector(config),
        }
    )
