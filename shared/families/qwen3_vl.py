"""Qwen3-VL: as Qwen2-VL, with rows of inner tower layers beside an item's own, and times in videos.

Knows what differs from Qwen2-VL. Does not know how a decoder takes the further
rows (`deepstack.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shared.errors import BadEmbeddingsError
from shared.families.base import (
    MAIN_TENSOR,
    Checkpoint,
    EncodedItem,
    Features,
    LanguageModel,
    Modality,
    Preprocessor,
    PromptLayout,
    RawTensor,
    Tower,
)
from shared.families.config import model_config
from shared.families.embeddings import check_fields, check_rows, split_columns
from shared.families.mrope import AXES
from shared.families.qwen2_vl import FIELDS, PREFIXES, Qwen2VLFamily, Qwen2VLTower
from shared.families.qwen2_vl import VIDEO_DEFAULTS as QWEN2_DEFAULTS
from shared.families.timed_layout import ItemWords, TimedLayout
from shared.families.timed_videos import TimedVideoPreprocessor

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.families.weights import Fit
    from shared.kernels.blocks import BlockWeights
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)

VIDEO_DEFAULTS: Mapping[str, Any] = {
    **QWEN2_DEFAULTS,
    "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32},
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "patch_size": 16,
    "max_video_tokens": 768,
}
"""Those of transformers' Qwen3VLVideoProcessor."""


def level_names(count: int) -> tuple[str, ...]:
    """Names of the tensors beside `MAIN_TENSOR`: deepstack_0 is added behind the decoder's first layer."""
    return tuple(f"deepstack_{level}" for level in range(count))


DEPTH = 2
"""Frames of a group."""


def group_times(times: tuple[float, ...]) -> tuple[float, ...]:
    """Between each first and second frame, in tenths of a second, as the prompt says them."""
    pairs = zip(times[::2], times[1::2], strict=True)
    return tuple(float(f"{(first + second) / 2:.1f}") for first, second in pairs)


def write_group(seconds: float) -> str:
    """A group of frames and its time, as in transformers' Qwen3VLProcessor."""
    return f"<{seconds:.1f} seconds><|vision_start|><|video_pad|><|vision_end|>"


WORDS = ItemWords(
    placeholders={
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
        "video": "<|vision_start|><|video_pad|><|vision_end|>",
    },
    picture="<|image_pad|>",
    between=dict.fromkeys(("image", "video"), "<|vision_end|><|vision_start|>"),
    group=write_group,
)


class Qwen3VLPreprocessor(TimedVideoPreprocessor):
    """As for Qwen2-VL, with times, and precomputed embeddings of several levels; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any, video_defaults: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, config, video_defaults, DEPTH, group_times)
        levels = getattr(config.vision_config, "deepstack_visual_indexes", ())
        self._levels = level_names(len(levels))

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: as `TimedVideoPreprocessor`'s, with the levels either behind the rows' own
        columns, (rows, hidden x (1 + levels)), or as deepstack_0, deepstack_1 and so on,
        each (rows, hidden).
        """
        check_fields(fields, required=self._required(modality), optional=self._levels)
        rows_name, _ = FIELDS[modality]
        apart = self._apart(rows_name, fields)
        item = self._accepted(modality, {n: t for n, t in apart.items() if n not in self._levels})
        item.tensors |= self._read_levels(rows_name, apart, item.info.row_count)
        return item

    def _apart(self, rows_name: str, fields: Mapping[str, RawTensor]) -> Mapping[str, RawTensor]:
        """The fields with a tensor of their own for each level."""
        rows = fields[rows_name]
        wide = self._hidden_size * (1 + len(self._levels))
        if not self._levels or len(rows.shape) != 2 or rows.shape[1] != wide:
            return fields
        for name in self._levels:
            if name in fields:
                raise BadEmbeddingsError(f"{rows_name} holds all levels, and {name} is there too", param=name)
        parts = split_columns(rows, self._hidden_size)
        return dict(fields) | dict(zip((rows_name, *self._levels), parts, strict=True))

    def _read_levels(
        self, rows_name: str, fields: Mapping[str, RawTensor], row_count: int
    ) -> dict[str, RawTensor]:
        for name in self._levels:
            if name not in fields:
                every = self._hidden_size * (1 + len(self._levels))
                raise BadEmbeddingsError(
                    f"the field {name} is missing; {rows_name} may also be {every} wide and hold all levels",
                    param=name,
                )
            found = check_rows(name, fields[name], self._hidden_size)
            if found != row_count:
                raise BadEmbeddingsError(f"{name} has {found} rows; {rows_name} has {row_count}", param=name)
        return {name: fields[name] for name in self._levels}


class Qwen3VLTower(Qwen2VLTower):
    """The vision tower with its weights; see `Tower`."""

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`. One tensor a level beside the rows."""
        output = self._run(batch)
        further = getattr(output, "deepstack_features", [])
        names = (MAIN_TENSOR, *level_names(len(further)))
        counts = [features.info.row_count for features in batch]
        parts = zip(*(level.split(counts) for level in (output.pooler_output, *further)), strict=True)
        return [dict(zip(names, item, strict=True)) for item in parts]

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
        mergers = [module.merger, *getattr(module, "deepstack_merger_list", [])]
        reason = obstacle([module.patch_embed, *module.blocks, *mergers], module.config.hidden_act)
        if reason is not None:
            logger.info("torch computes this tower: %s", reason)
            return False
        workspace = Workspace(team, next(module.parameters()).dtype)
        module.patch_embed = replace_patches(module.patch_embed.proj, team)
        for merger in mergers:
            replace_linear_layers(merger, team)
        for block in module.blocks:
            block.forward = KernelBlock(_block_weights(block, team), workspace).run_segments
        return True


def _block_weights(block: Any, team: Team) -> BlockWeights:
    """Packs a block."""
    from shared.kernels.blocks import ACTIVATIONS, BlockWeights, Linear, Norm
    from shared.kernels.program import Heads

    attention, feed = block.attn, block.mlp
    head_count = int(attention.num_heads)
    return BlockWeights(
        attention_norm=Norm.of(block.norm1),
        states=Linear.of(team, attention.qkv),
        output=Linear.of(team, attention.proj),
        feed_norm=Norm.of(block.norm2),
        widen=Linear.of(team, feed.linear_fc1),
        narrow=Linear.of(team, feed.linear_fc2),
        activation=ACTIVATIONS[attention.config.hidden_act],
        heads=Heads(head_count, head_count, attention.head_dim),
    )


class Qwen3VLFamily(Qwen2VLFamily):
    """Factory of the parts of one Qwen3-VL checkpoint; see `Family`."""

    model_type = "qwen3_vl"
    video_defaults: Mapping[str, Any] = VIDEO_DEFAULTS
    image_token_default: int = 151655
    """The placeholder id where the config names none."""
    video_token_default: int = 151656
    """The same for videos."""

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return Qwen3VLPreprocessor(self._checkpoint, model_config(self._checkpoint), self.video_defaults)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self._checkpoint.config
        video_id = int(config.get("video_token_id", self.video_token_default))
        return TimedLayout(
            image_id=int(config.get("image_token_id", self.image_token_default)),
            video_id=video_id,
            group_id=video_id,
            merge_size=self._merge_size(),
            words=WORDS,
        )

    def extra_widths(self) -> Mapping[str, int]:
        """See `Family`. One a level."""
        levels = len(model_config(self._checkpoint).vision_config.deepstack_visual_indexes)
        return dict.fromkeys(level_names(levels), self.hidden_size())

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`."""
        from shared.families.decoder import load_decoder
        from shared.families.deepstack import DeepstackDecoder

        widths = self.extra_widths()
        return load_decoder(
            self._build_text_model,
            model_config(self._checkpoint),
            self._checkpoint,
            PREFIXES,
            device,
            dtype,
            attention_name,
            AXES,
            make=lambda module, text, axes: DeepstackDecoder(module, text, axes, widths),
            fits=self._fits(),
        )

    def _fits(self) -> Mapping[str, Fit]:
        """Tensors of the language model that checkpoints hold in several layouts."""
        return {}

    def _make_tower(self, module: nn.Module) -> Tower:
        return Qwen3VLTower(module, self.hidden_size(), self._recipe())

    def _build_tower(self, config: Any) -> nn.Module:
        from transformers.models.qwen3_vl import modeling_qwen3_vl

        module: nn.Module = modeling_qwen3_vl.Qwen3VLVisionModel(config)
        return module

    def _build_text_model(self, config: Any) -> nn.Module:
        from transformers.models.qwen3_vl import modeling_qwen3_vl

        module: nn.Module = modeling_qwen3_vl.Qwen3VLTextModel(config)
        return module
