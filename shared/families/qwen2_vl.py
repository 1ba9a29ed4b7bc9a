"""Qwen2-VL: a tower over any picture size, rows in a grid, three rotary axes.

Knows both halves of the family, each made apart. Does not know who runs them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.base import (
    MAIN_TENSOR,
    Checkpoint,
    EncodedItem,
    Features,
    Grid,
    LanguageModel,
    MediaInfo,
    Modality,
    Preprocessor,
    PromptLayout,
    RawTensor,
    Tower,
    VideoClip,
)
from shared.families.config import model_config
from shared.families.defaults import CommonFamily
from shared.families.embeddings import check_fields, check_rows, read_grids
from shared.families.image_processor import ImageProcessor
from shared.families.mrope import AXES, MRopeLayout
from shared.families.parts import cut_steps, part_token_count
from shared.families.pixel_bounds import PixelBounds
from shared.families.video_settings import FrameRecipe, own_frame_rate, read_recipe, read_video_settings

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.weights import Prefixes
    from shared.kernels.blocks import BlockWeights
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)

FIELDS: Mapping[Modality, tuple[str, str]] = {
    "image": ("image_embeds", "image_grid_thw"),
    "video": ("video_embeds", "video_grid_thw"),
}
"""Precomputed embeddings: rows and grids."""

ROWS, GRID = FIELDS["image"]

PIXELS = "pixel_values"
FRAMES = "frames"
"""Features of a picture, cut into patches, and of a video, as it was decoded."""

VIDEO_DEFAULTS: Mapping[str, Any] = {
    "resample": 3,
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "do_resize": True,
    "cap_pixels_per_frame": False,
    "max_video_tokens": 128000,
}
"""Those of transformers' Qwen2VLVideoProcessor, which both families have."""

PREFIXES: Prefixes = {
    "visual.": ("encoder", ""),
    "model.visual.": ("encoder", ""),
    "model.": ("language", "model."),
    "model.language_model.": ("language", "model."),
    "lm_head.": ("language", "lm_head."),
}
"""As the hub's files name tensors, and as newer transformers save them."""


class Qwen2VLPreprocessor:
    """Pictures, videos and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any, video_defaults: Mapping[str, Any]) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._videos = read_video_settings(checkpoint, video_defaults)
        self.frame_rate = own_frame_rate(checkpoint)
        self._frame_bounds = frame_bounds(checkpoint, self._videos)
        # For its refusals; the tower reads it for itself.
        read_recipe(self._videos)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._vision: Any = config.vision_config
        self._merge_size = int(config.vision_config.spatial_merge_size)
        _check_patches(checkpoint, "image", self._processor.attribute, config.vision_config)
        _check_patches(checkpoint, "video", self._videos.get, config.vision_config)

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`.

        Settings: `min_pixels` and `max_pixels`, or `size`, which may only lower a picture's cost.
        """
        bounds = PixelBounds.of_size(self._processor.size).narrowed(settings)
        size = {"shortest_edge": bounds.least, "longest_edge": bounds.most}
        arrays = self._processor(picture, **({"size": size} if settings else {}))
        (grid,) = (Grid(*map(int, row)) for row in arrays["image_grid_thw"])
        taken = {name: arrays[name] for name in (PIXELS, "image_grid_thw")}
        return self._features(grid, (picture.height, picture.width), taken)

    def preprocess_video(self, clip: VideoClip, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. The frames stay as they are; the tower resizes them.

        Settings: those of pictures, for each frame.
        """
        count, height, width, _ = clip.frames.shape
        depth, side = int(self._vision.temporal_patch_size), int(self._vision.patch_size)
        factor = side * self._merge_size
        bounds = self._frame_bounds.narrowed(settings)
        if self._videos["cap_pixels_per_frame"]:
            bounds = bounds.shared(count, int(self._videos["max_video_tokens"]), factor, depth)
        rows, columns = (length // side for length in bounds.fit(height, width, factor))
        # The last frame is repeated where one is missing.
        grid = Grid(-(-count // depth), rows, columns)
        return self._features(grid, (height, width), {FRAMES: clip.frames})

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden) and `image_grid_thw` [3], [1, 3] or [n, 3];
        of videos `video_embeds` and `video_grid_thw`.
        """
        rows_name, grid_name = FIELDS[modality]
        check_fields(fields, required=(rows_name, grid_name), optional=())
        return self._accepted(modality, fields)

    def _accepted(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """An item of rows and their grids."""
        rows_name, grid_name = FIELDS[modality]
        # The grid first: it is small, and the rows are read whole.
        grids = read_grids(grid_name, fields[grid_name], self._merge_size)
        implied = sum(grid.time * grid.height * grid.width for grid in grids) // self._merge_size**2
        shape = fields[rows_name].shape
        if shape[:1] != (implied,) and len(shape) == 2:
            raise BadEmbeddingsError(
                f"{rows_name} has {shape[0]} rows; {grid_name} implies {implied}", param=rows_name
            )
        rows = check_rows(rows_name, fields[rows_name], self._hidden_size)
        return EncodedItem(MediaInfo(row_count=rows, grids=grids), {MAIN_TENSOR: fields[rows_name]})

    def _features(self, grid: Grid, size: tuple[int, int], arrays: dict[str, npt.NDArray[Any]]) -> Features:
        patch_count = grid.time * grid.height * grid.width
        info = MediaInfo(row_count=patch_count // self._merge_size**2, grids=(grid,), image_size=size)
        return Features(info, arrays, patch_count)


def frame_bounds(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> PixelBounds:
    """Pixels of a frame, by the settings of a checkpoint's video processor.

    Raises:
        InvalidRequestError: the settings do not say them, or that frames are not resized.
    """
    if not settings["do_resize"]:
        raise InvalidRequestError(f"{checkpoint.folder}: videos are not served without resizing")
    size = dict(settings["size"])
    named = (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels"))
    size |= {edge: settings[name] for edge, name in named if name in settings}
    try:
        return PixelBounds.of_size(size)
    except KeyError as error:
        raise InvalidRequestError(f"{checkpoint.folder}: the size of videos has no {error}") from None


def _check_patches(checkpoint: Checkpoint, kind: str, made: Callable[[str], Any], vision: Any) -> None:
    """Raises InvalidRequestError where a processor cuts other patches than the tower takes."""
    names = (
        ("patch_size", "patch_size"),
        ("temporal_patch_size",) * 2,
        ("merge_size", "spatial_merge_size"),
    )
    for ours, theirs in names:
        if made(ours) != getattr(vision, theirs):
            raise InvalidRequestError(
                f"{checkpoint.folder}: the {kind} processor has {ours} {made(ours)},"
                f" the tower {theirs} {getattr(vision, theirs)}"
            )


class Qwen2VLTower:
    """The vision tower with its weights; see `Tower`."""

    def __init__(self, module: nn.Module, hidden_size: int, recipe: FrameRecipe) -> None:
        self._module: Any = module
        self._recipe = recipe
        self.hidden_size = hidden_size

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`.

        Pictures attend to themselves alone, whatever they are batched with, and so
        does each step of a video, which is two frames deep.
        """
        import torch

        rows: torch.Tensor = self._run(batch).pooler_output
        counts = [features.info.row_count for features in batch]
        return [{MAIN_TENSOR: part} for part in torch.split(rows, counts)]

    def split(self, features: Features) -> list[Features]:
        """See `Tower`. A video into groups of steps, as no step attends to another."""
        if FRAMES not in features.arrays:
            return [features]
        (grid,) = features.info.grids
        step_cost, step_rows = features.token_cost // grid.time, features.info.row_count // grid.time
        depth, frames = int(self._module.config.temporal_patch_size), features.arrays[FRAMES]
        most = part_token_count(next(self._module.parameters()).device.type)
        return [
            Features(
                replace(
                    features.info,
                    row_count=(end - start) * step_rows,
                    grids=(Grid(end - start, grid.height, grid.width),),
                ),
                {FRAMES: frames[start * depth : end * depth]},
                (end - start) * step_cost,
            )
            for start, end in cut_steps(grid.time, step_cost, most)
        ]

    def _run(self, batch: Sequence[Features]) -> Any:
        """What the module gives for all patches of a batch, one item after the other."""
        import torch

        grids = [
            cut for features in batch for grid in features.info.grids for cut in self._module_grids(grid)
        ]
        with torch.inference_mode():
            patches = torch.cat([self._patches(features) for features in batch])
            return self._module(patches, grid_thw=torch.tensor(grids).to(patches.device))

    def _module_grids(self, grid: Grid) -> list[tuple[int, int, int]]:
        """A grid as the module takes it: time, height and width."""
        return [(grid.time, grid.height, grid.width)]

    def _patches(self, features: Features) -> torch.Tensor:
        """(patches, channels x depth x side x side), on the tower's device and in its type."""
        import torch

        weight = next(self._module.parameters())
        if FRAMES not in features.arrays:
            return torch.from_numpy(features.arrays[PIXELS]).to(weight.device, weight.dtype)
        from shared.families.frame_patches import cut_patches
        from shared.families.frames import frames_to_pixels

        vision = self._module.config
        (grid,) = features.info.grids
        size = (grid.height * vision.patch_size, grid.width * vision.patch_size)
        pixels = frames_to_pixels(features.arrays[FRAMES], size, self._recipe, weight.device)
        return cut_patches(
            pixels, vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size
        ).to(weight.dtype)

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`."""
        from shared.kernels.blocks import (
            KernelBlock,
            Workspace,
            obstacle,
            replace_linear_layers,
            replace_patches,
        )

        module = self._module
        gated = hasattr(module.blocks[0].mlp, "gate_proj")
        parts = [module.patch_embed, *module.blocks, module.merger]
        reason = obstacle(parts, module.config.hidden_act, gated=gated)
        if reason is not None:
            logger.info("torch computes this tower: %s", reason)
            return False
        workspace = Workspace(team, next(module.parameters()).dtype)
        module.patch_embed = replace_patches(module.patch_embed.proj, team)
        replace_linear_layers(module.merger, team)
        for block in module.blocks:
            block.forward = KernelBlock(_block_weights(block, team), workspace).run_segments
        return True


def _block_weights(block: Any, team: Team) -> BlockWeights:
    """Packs a block of Qwen2-VL, or of Qwen2.5-VL, whose feed-forward is gated."""
    from shared.kernels.blocks import ACTIVATIONS, BlockWeights, Linear, Norm
    from shared.kernels.operation import Activation
    from shared.kernels.program import Heads

    attention, feed = block.attn, block.mlp
    gated = hasattr(feed, "gate_proj")
    head_count = int(attention.num_heads)
    return BlockWeights(
        attention_norm=Norm.of(block.norm1),
        states=Linear.of(team, *_states(attention)),
        output=Linear.of(team, attention.proj),
        feed_norm=Norm.of(block.norm2),
        widen=Linear.gated(team, feed.gate_proj, feed.up_proj) if gated else Linear.of(team, feed.fc1),
        narrow=Linear.of(team, feed.down_proj if gated else feed.fc2),
        activation=Activation.NONE if gated else ACTIVATIONS[attention.config.hidden_act],
        heads=Heads(head_count, head_count, attention.head_dim),
    )


def _states(attention: Any) -> tuple[Any, ...]:
    """The layers that make queries, keys and values: one, or Qwen2.5-Omni's three."""
    return (attention.qkv,) if hasattr(attention, "qkv") else (attention.q, attention.k, attention.v)


class Qwen2VLFamily(CommonFamily):
    """Factory of the parts of one Qwen2-VL checkpoint; see `Family`."""

    model_type = "qwen2_vl"
    modalities: tuple[Modality, ...] = ("image", "video")
    video_defaults: Mapping[str, Any] = VIDEO_DEFAULTS
    prefixes: Prefixes = PREFIXES

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return Qwen2VLPreprocessor(self._checkpoint, model_config(self._checkpoint), self.video_defaults)

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        from shared.families.tower_attention import prepare_tower
        from shared.families.weights import load_half

        config = model_config(self._checkpoint).vision_config
        # Cuts the batch by picture and runs each alone, so that cost grows with
        # each picture's square, not with the batch's.
        config._attn_implementation = "sdpa"
        module = load_half(
            lambda: self._build_tower(config), self._checkpoint, "encoder", self.prefixes, device, dtype
        )
        prepare_tower(module, config, device, dtype)
        return self._make_tower(module)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self._checkpoint.config
        return MRopeLayout(
            image_id=int(config.get("image_token_id", 151655)),
            video_id=int(config.get("video_token_id", 151656)),
            start_id=int(config.get("vision_start_token_id", 151652)),
            end_id=int(config.get("vision_end_token_id", 151653)),
            merge_size=self._merge_size(),
            steps_per_second=self._steps_per_second(),
        )

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`."""
        from shared.families.decoder import load_decoder

        config = model_config(self._checkpoint)
        return load_decoder(
            self._build_text_model, config, self._checkpoint, PREFIXES, device, dtype, attention_name, AXES
        )

    def _steps_per_second(self) -> float | None:
        """How fast a video's time runs along its axis; None: a step for each group of frames."""
        return None

    def _merge_size(self) -> int:
        return int(self._checkpoint.config.get("vision_config", {}).get("spatial_merge_size", 2))

    def _make_tower(self, module: nn.Module) -> Tower:
        return Qwen2VLTower(module, self.hidden_size(), self._recipe())

    def _recipe(self) -> FrameRecipe:
        return read_recipe(read_video_settings(self._checkpoint, self.video_defaults))

    def _build_tower(self, config: Any) -> nn.Module:
        from transformers.models.qwen2_vl import modeling_qwen2_vl

        module: nn.Module = modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel(config)
        return module

    def _build_text_model(self, config: Any) -> nn.Module:
        from transformers.models.qwen2_vl import modeling_qwen2_vl

        module: nn.Module = modeling_qwen2_vl.Qwen2VLTextModel(config)
        return module
