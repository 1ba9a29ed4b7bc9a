"""The Pixtral tower and its pictures: any size, rows in lines, rotary positions in two dimensions.

Knows pictures, precomputed embeddings, and the tower with a projector behind it.
Does not know which family asks: pixtral-12b is a LLaVA, Mistral Small 3.1 a Mistral3.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared.errors import BadEmbeddingsError, BadMediaError, InvalidRequestError
from shared.families.base import (
    MAIN_TENSOR,
    Checkpoint,
    EncodedItem,
    Features,
    Grid,
    MediaInfo,
    Modality,
    RawTensor,
)
from shared.families.defaults import InOneGo, PicturesAlone
from shared.families.embeddings import check_fields, check_rows, read_size
from shared.families.image_processor import ImageProcessor
from shared.families.pixtral_layout import lines_and_columns

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.weights import Prefixes
    from shared.kernels.blocks import BlockWeights
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)

ROWS = "image_embeds"
SIZES = "image_sizes"
SETTING = "size"
EDGE = "longest_edge"

CPU_ATTENTION = "percept_flash_each_segment"
"""Contains "flash": only then the modeling code says where each picture begins, instead
of building a mask of all patches by all patches."""


class PixtralPreprocessor(PicturesAlone):
    """Pictures and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any, merge_size: int) -> None:
        """Args:
        config: configuration of the whole model.
        merge_size: patches per row of embeddings, along one side.
        """
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._cell = int(config.vision_config.patch_size) * merge_size
        self._merge_area = merge_size**2
        if EDGE not in self._processor.size:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the image processor's size has no {EDGE}, but {self._processor.size}"
            )
        self._longest_edge = int(self._processor.size[EDGE])

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`.

        Settings: `size`, {"longest_edge": pixels}, at most the checkpoint's own.
        """
        longest_edge = self._edge(settings)
        size = (picture.height, picture.width)
        lines, columns = lines_and_columns(size, longest_edge, self._cell)
        if not lines * columns:
            raise BadMediaError(
                f"the picture is {picture.width} x {picture.height} pixels: nothing is left of its"
                f" shorter side once the longer is {longest_edge}"
            )
        # The processor's own patch size is without merging; this is how it is called with.
        arrays = self._processor(picture, patch_size=self._cell, size={EDGE: longest_edge})
        row_count = lines * columns
        info = MediaInfo(
            row_count=row_count,
            grids=(Grid(1, lines, columns),),
            # As transformers' `image_sizes`: what was made of the picture, so that the rows follow from it.
            image_size=(lines * self._cell, columns * self._cell),
        )
        return Features(info, arrays, row_count * self._merge_area)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden) and `image_sizes` [2] or [1, 2]: height and
        width of the picture, or of what the processor made of it, which comes to the same.
        """
        check_fields(fields, required=(ROWS, SIZES), optional=())
        size = read_size(SIZES, fields[SIZES])
        lines, columns = lines_and_columns(size, self._longest_edge, self._cell)
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        if rows != lines * columns:
            raise BadEmbeddingsError(f"{ROWS} has {rows} rows; {SIZES} implies {lines * columns}", param=ROWS)
        info = MediaInfo(row_count=rows, grids=(Grid(1, lines, columns),), image_size=size)
        return EncodedItem(info, {MAIN_TENSOR: fields[ROWS]})

    def _edge(self, settings: Mapping[str, Any]) -> int:
        """The longer side of the request, in pixels.

        Raises:
            InvalidRequestError: an unknown setting, or more than the checkpoint's own.
        """
        for name in settings:
            if name != SETTING:
                raise InvalidRequestError(f"unknown processor setting {name!r}; there is {SETTING}")
        value = settings.get(SETTING, {EDGE: self._longest_edge})
        edge = value.get(EDGE) if isinstance(value, Mapping) and len(value) == 1 else None
        if not isinstance(edge, int) or isinstance(edge, bool) or not 1 <= edge <= self._longest_edge:
            raise InvalidRequestError(
                f'{SETTING} is {{"{EDGE}": pixels}} with a whole number from 1 to {self._longest_edge}'
            )
        return edge


class PixtralTower(InOneGo):
    """Vision tower and projector with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, config: Any, *, projector_takes_sizes: bool) -> None:
        """Args:
        module: with `tower` and `projector`.
        config: configuration of the whole model.
        projector_takes_sizes: the projector merges patches, so it must know their lines.
        """
        self._module: Any = module
        layers = config.vision_feature_layer
        self._layers = [layers] if isinstance(layers, int) else list(layers)
        self._projector_takes_sizes = projector_takes_sizes
        self.hidden_size = int(config.get_text_config().hidden_size)

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`. Pictures attend to themselves alone, whatever they are batched with."""
        import torch

        weight = self._module.projector.linear_1.weight
        sizes = [features.arrays["pixel_values"].shape[-2:] for features in batch]
        pixels = torch.from_numpy(_padded(batch)).to(weight.device, weight.dtype)
        with torch.inference_mode():
            output = self._module.tower(pixels, image_sizes=sizes, output_hidden_states=self._layers)
            patches = torch.cat([output.hidden_states[layer] for layer in self._layers], dim=-1)[0]
            further = (sizes,) if self._projector_takes_sizes else ()
            rows = self._module.projector(patches, *further)
        counts = [features.info.row_count for features in batch]
        return [{MAIN_TENSOR: part} for part in torch.split(rows, counts)]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. The blocks alone: patches and projector are a few percent of the work."""
        from shared.kernels.blocks import KernelBlock, Workspace, obstacle

        blocks = list(self._module.tower.transformer.layers)
        reason = obstacle(blocks, self._module.tower.config.hidden_act, gated=True)
        if reason is not None:
            logger.info("torch computes this tower: %s", reason)
            return False
        workspace = Workspace(team, blocks[0].attention_norm.weight.dtype)
        for block in blocks:
            block.forward = _PixtralBlock(KernelBlock(_block_weights(block, team), workspace)).run
        return True


class _PixtralBlock:
    """A block of kernels, called as the modeling code calls its own."""

    def __init__(self, block: Any) -> None:
        self._block = block

    def run(
        self,
        hidden_states: torch.Tensor,
        attention_mask: None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        cu_seq_lens_q: torch.Tensor,
        **_: Any,
    ) -> torch.Tensor:
        """(1, patches, width) of several pictures, one after the other."""
        output: torch.Tensor = self._block.run_segments(hidden_states[0], cu_seq_lens_q, position_embeddings)
        return output[None]


def load_pixtral_half(
    projector: type[nn.Module],
    config: Any,
    checkpoint: Checkpoint,
    prefixes: Prefixes,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """Loads the module of a `PixtralTower`.

    Args:
        projector: the family's class, made from `config`.
        config: configuration of the whole model.
        prefixes: see `load_half`.

    Raises:
        InvalidRequestError: weights that do not fit.
    """
    from torch import nn
    from transformers.models.pixtral.modeling_pixtral import PixtralVisionModel

    from shared.families.weights import load_half

    vision = config.vision_config
    vision._attn_implementation = "sdpa"

    def build() -> nn.Module:
        return nn.ModuleDict({"tower": PixtralVisionModel(vision), "projector": projector(config)})

    module: Any = load_half(build, checkpoint, "encoder", prefixes, device, dtype)
    _attend_by_picture(module.tower.config, device, dtype)
    loaded: nn.Module = module
    return loaded


def _attend_by_picture(vision: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Has each picture attend to itself without a mask over the whole batch.

    Args:
        vision: the configuration that the built modules hold; read at every call.
    """
    from transformers import AttentionInterface

    from shared.families.tower_attention import segment_attention, use_segments

    if use_segments(vision, device, dtype):
        return
    AttentionInterface.register(CPU_ATTENTION, segment_attention(_each_segment))
    vision._attn_implementation = CPU_ATTENTION


def _each_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scaling: float,
) -> torch.Tensor:
    """torch's attention, called once for each segment; see `tower_attention.Kernel`."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    counts = starts.diff().tolist()
    sides = [torch.split(side.transpose(0, 1)[None], counts, dim=2) for side in (query, key, value)]
    attended = [
        scaled_dot_product_attention(queries, keys, values, scale=scaling)
        for queries, keys, values in zip(*sides, strict=True)
    ]
    return torch.cat(attended, dim=2)[0].transpose(0, 1)


def _padded(batch: Sequence[Features]) -> npt.NDArray[np.float32]:
    """Pixels (1, channels, height, width) of several items, each in a corner of the largest size."""
    pictures: list[npt.NDArray[np.float32]] = [features.arrays["pixel_values"][0] for features in batch]
    if len(pictures) == 1:
        return pictures[0][np.newaxis]
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    padded = np.zeros((len(pictures), pictures[0].shape[0], height, width), dtype=np.float32)
    for row, picture in zip(padded, pictures, strict=True):
        row[:, : picture.shape[1], : picture.shape[2]] = picture
    return padded


def _block_weights(block: Any, team: Team) -> BlockWeights:
    """Packs a block of Pixtral: root-mean-square norms and a gated feed-forward, no biases."""
    from shared.kernels.blocks import BlockWeights, Linear, Norm
    from shared.kernels.operation import Activation
    from shared.kernels.program import Heads

    attention, feed = block.attention, block.feed_forward
    head_count = int(attention.num_heads)
    return BlockWeights(
        attention_norm=Norm.of(block.attention_norm),
        states=Linear.of(team, attention.q_proj, attention.k_proj, attention.v_proj),
        output=Linear.of(team, attention.o_proj),
        feed_norm=Norm.of(block.ffn_norm),
        widen=Linear.gated(team, feed.gate_proj, feed.up_proj),
        narrow=Linear.of(team, feed.down_proj),
        activation=Activation.NONE,
        heads=Heads(head_count, head_count, int(attention.head_dim)),
    )
