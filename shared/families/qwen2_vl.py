"""Qwen2-VL: a tower over any picture size, rows in a grid, three rotary axes.

Knows both halves of the family, each made apart. Does not know who runs them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

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
)
from shared.families.config import model_config
from shared.families.defaults import CommonFamily, InOneGo, PicturesAlone
from shared.families.embeddings import check_fields, check_rows, read_grids
from shared.families.image_processor import ImageProcessor
from shared.families.mrope import AXES, MRopeLayout

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.weights import Prefixes
    from shared.kernels.blocks import BlockWeights
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)

ROWS = "image_embeds"
GRID = "image_grid_thw"
SETTINGS = ("min_pixels", "max_pixels")

PREFIXES: Prefixes = {
    "visual.": ("encoder", ""),
    "model.visual.": ("encoder", ""),
    "model.": ("language", "model."),
    "model.language_model.": ("language", "model."),
    "lm_head.": ("language", "lm_head."),
}
"""As the hub's files name tensors, and as newer transformers save them."""


class Qwen2VLPreprocessor(PicturesAlone):
    """Pictures and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._merge_size = int(config.vision_config.spatial_merge_size)
        self._check_patches(checkpoint, config.vision_config)

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`.

        Settings: `min_pixels` and `max_pixels`, which may only lower a picture's cost.
        """
        size = self._target_size(settings)
        arrays = self._processor(picture, **({"size": size} if settings else {}))
        (grid,) = (Grid(*map(int, row)) for row in arrays[GRID])
        patch_count = grid.time * grid.height * grid.width
        info = MediaInfo(
            row_count=patch_count // self._merge_size**2,
            grids=(grid,),
            image_size=(picture.height, picture.width),
        )
        return Features(info, {"pixel_values": arrays["pixel_values"], GRID: arrays[GRID]}, patch_count)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden) and `image_grid_thw` [3], [1, 3] or [n, 3].
        """
        check_fields(fields, required=(ROWS, GRID), optional=())
        # The grid first: it is small, and the rows are read whole.
        grids = read_grids(GRID, fields[GRID], self._merge_size)
        implied = sum(grid.time * grid.height * grid.width for grid in grids) // self._merge_size**2
        if fields[ROWS].shape[:1] != (implied,) and len(fields[ROWS].shape) == 2:
            raise BadEmbeddingsError(
                f"{ROWS} has {fields[ROWS].shape[0]} rows; {GRID} implies {implied}", param=ROWS
            )
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        return EncodedItem(MediaInfo(row_count=rows, grids=grids), {MAIN_TENSOR: fields[ROWS]})

    def _check_patches(self, checkpoint: Checkpoint, vision: Any) -> None:
        """Raises InvalidRequestError where the processor cuts other patches than the tower takes."""
        names = (
            ("patch_size", "patch_size"),
            ("temporal_patch_size",) * 2,
            ("merge_size", "spatial_merge_size"),
        )
        for ours, theirs in names:
            made, taken = self._processor.attribute(ours), getattr(vision, theirs)
            if made != taken:
                raise InvalidRequestError(
                    f"{checkpoint.folder}: the image processor has {ours} {made}, the tower {theirs} {taken}"
                )

    def _target_size(self, settings: Mapping[str, Any]) -> dict[str, int]:
        """The processor's size with the request's own bounds.

        Raises:
            InvalidRequestError: an unknown setting, or bounds that make no
                sense or would cost more than the checkpoint's own.
        """
        own = self._processor.size
        for name in settings:
            if name not in SETTINGS:
                raise InvalidRequestError(
                    f"unknown processor setting {name!r}; there are {' and '.join(SETTINGS)}"
                )
        most = self._pixels(settings, "max_pixels", own["longest_edge"])
        least = self._pixels(settings, "min_pixels", min(own["shortest_edge"], most))
        if not least <= most <= own["longest_edge"]:
            raise InvalidRequestError(
                f"min_pixels <= max_pixels <= {own['longest_edge']} does not hold: {least}, {most}"
            )
        return {"shortest_edge": least, "longest_edge": most}

    @staticmethod
    def _pixels(settings: Mapping[str, Any], name: str, default: int) -> int:
        value = settings.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidRequestError(f"{name} is a whole number of at least 1")
        return value


class Qwen2VLTower(InOneGo):
    """The vision tower with its weights; see `Tower`."""

    def __init__(self, module: nn.Module, hidden_size: int, merge_size: int) -> None:
        self._module: Any = module
        self._merge_area = merge_size**2
        self.hidden_size = hidden_size

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`. Pictures attend to themselves alone, whatever they are batched with."""
        import torch

        weight = next(self._module.parameters())
        pixels = torch.from_numpy(np.concatenate([features.arrays["pixel_values"] for features in batch]))
        grids = torch.from_numpy(np.concatenate([features.arrays[GRID] for features in batch]))
        with torch.inference_mode():
            output = self._module(pixels.to(weight.device, weight.dtype), grid_thw=grids.to(weight.device))
        rows: torch.Tensor = output.pooler_output
        counts = [features.info.row_count for features in batch]
        return [{MAIN_TENSOR: part} for part in torch.split(rows, counts)]

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
        states=Linear.of(team, attention.qkv),
        output=Linear.of(team, attention.proj),
        feed_norm=Norm.of(block.norm2),
        widen=Linear.gated(team, feed.gate_proj, feed.up_proj) if gated else Linear.of(team, feed.fc1),
        narrow=Linear.of(team, feed.down_proj if gated else feed.fc2),
        activation=Activation.NONE if gated else ACTIVATIONS[attention.config.hidden_act],
        heads=Heads(head_count, head_count, attention.head_dim),
    )


class Qwen2VLFamily(CommonFamily):
    """Factory of the parts of one Qwen2-VL checkpoint; see `Family`."""

    model_type = "qwen2_vl"

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return Qwen2VLPreprocessor(self._checkpoint, model_config(self._checkpoint))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        from shared.families.tower_attention import prepare_tower
        from shared.families.weights import load_half

        config = model_config(self._checkpoint).vision_config
        # Cuts the batch by picture and runs each alone, so that cost grows with
        # each picture's square, not with the batch's.
        config._attn_implementation = "sdpa"
        module = load_half(
            lambda: self._build_tower(config), self._checkpoint, "encoder", PREFIXES, device, dtype
        )
        prepare_tower(module, config, device, dtype)
        return self._make_tower(module)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self._checkpoint.config
        return MRopeLayout(
            image_id=int(config.get("image_token_id", 151655)),
            start_id=int(config.get("vision_start_token_id", 151652)),
            end_id=int(config.get("vision_end_token_id", 151653)),
            merge_size=self._merge_size(),
        )

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`."""
        from shared.families.decoder import load_decoder

        config = model_config(self._checkpoint)
        return load_decoder(
            self._build_text_model, config, self._checkpoint, PREFIXES, device, dtype, attention_name, AXES
        )

    def _merge_size(self) -> int:
        return int(self._checkpoint.config.get("vision_config", {}).get("spatial_merge_size", 2))

    def _make_tower(self, module: nn.Module) -> Tower:
        return Qwen2VLTower(module, self.hidden_size(), self._merge_size())

    def _build_tower(self, config: Any) -> nn.Module:
        from transformers.models.qwen2_vl import modeling_qwen2_vl

        module: nn.Module = modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel(config)
        return module

    def _build_text_model(self, config: Any) -> nn.Module:
        from transformers.models.qwen2_vl import modeling_qwen2_vl

        module: nn.Module = modeling_qwen2_vl.Qwen2VLTextModel(config)
        return module
