"""Audio encoders of Whisper's kind over clips of different lengths.

Knows two convolutions, positions and pre-norm layers, as transformers' Whisper,
Qwen2-Audio and Voxtral encoders have them. Does not know what a family pools,
normalises or projects behind the layers, nor spectrograms.

transformers pads every clip to the longest and masks the padding in attention.
Here the rows of all clips stand one after the other, and each clip attends to
itself: the same numbers, without the padding's work.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from shared.kernels.blocks import BlockWeights
    from shared.kernels.convolution import KernelConvolution
    from shared.kernels.library import Team
    from shared.kernels.masked_block import MaskedBlock

logger = logging.getLogger(__name__)

FRAMES_BEHIND = 2
"""Frames behind a clip's last row that the convolutions still see: a padded clip keeps them."""


class AudioEncoder:
    """Convolutions, positions and layers with their weights."""

    def __init__(self, module: Any) -> None:
        """Args:
        module: transformers' encoder, with `conv1`, `conv2`, `embed_positions`, `layers` and
            `config`; attention is set in the configuration that its layers hold.
        """
        self._module = module
        self._config = module.config
        self._by_segments = False
        self._on_kernels = False
        self._masked_blocks: list[MaskedBlock] = []
        self._convolutions: list[KernelConvolution] = []

    def use_segments(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Makes every layer attend in one call to all clips, where the device has a kernel for it."""
        from shared.families.tower_attention import use_segments

        self._by_segments = use_segments(self._config, device, dtype)
        return self._by_segments

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. The layers and the convolutions before them."""
        from shared.kernels.blocks import KernelBlock, Workspace, obstacle
        from shared.kernels.convolution import KernelConvolution
        from shared.kernels.masked_block import MaskedBlock
        from shared.kernels.operation import Activation

        layers: list[Any] = list(self._module.layers)
        convolutions = (self._module.conv1, self._module.conv2)
        reason = obstacle([*layers, *convolutions], self._config.activation_function)
        if reason is not None:
            logger.info("torch computes this tower: %s", reason)
            return False
        workspace = Workspace(team, layers[0].fc1.weight.dtype)
        for layer in layers:
            weights = block_weights(layer, self._config.activation_function, team)
            layer.forward = KernelBlock(weights, workspace).run_segments
            self._masked_blocks.append(MaskedBlock(weights, team))
        self._convolutions = [KernelConvolution(team, each, Activation.GELU) for each in convolutions]
        self._on_kernels = True
        return True

    def rows(self, clips: Sequence[torch.Tensor], counts: Sequence[int]) -> list[torch.Tensor]:
        """Runs all clips through convolutions and layers.

        Args:
            clips: spectrograms (mels, frames), with at least `FRAMES_BEHIND` frames of padding
                behind the last row's where transformers would have padded.
            counts: of each clip, how many of its rows are real; a row is two frames.

        Returns:
            Of each clip (count, width), before any norm.
        """
        import torch

        with torch.inference_mode():
            starts = [self._started(clip, count) for clip, count in zip(clips, counts, strict=True)]
            if starts and (self._by_segments or self._on_kernels):
                return self._together(starts)
            return [self._through(rows[None])[0] for rows in starts]

    def masked_rows(self, clip: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        """Runs one clip through convolutions and layers where not every row sees all others.

        Args:
            clip: as for `rows`.
            sees: bool (count, count), which rows each row attends to, at least one.

        Returns:
            (count, width), before any norm.
        """
        import torch

        with torch.inference_mode():
            rows = self._started(clip, len(sees))
            sees = sees.to(rows.device)
            if not self._on_kernels:
                return self._masked_by_torch(rows, sees)
            for block in self._masked_blocks:
                rows = block(rows, sees)
            return rows

    def _masked_by_torch(self, rows: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        import torch

        mask = torch.zeros(sees.shape, dtype=rows.dtype, device=rows.device)
        mask = mask.masked_fill(~sees, torch.finfo(rows.dtype).min)[None, None]
        # Kernels for segments take no mask.
        chosen, self._config._attn_implementation = self._config._attn_implementation, "sdpa"
        try:
            rows = rows[None]
            for layer in self._module.layers:
                rows = layer(rows, mask)
        finally:
            self._config._attn_implementation = chosen
        return rows[0]

    def _started(self, clip: torch.Tensor, count: int) -> torch.Tensor:
        """Rows (count, width) as they enter the first layer."""
        module = self._module
        weight = module.conv1.weight
        hidden = self._convolved(clip.to(weight.device, weight.dtype))
        assert count <= len(hidden), "a row is two frames"
        rows: torch.Tensor = hidden[:count] + module.embed_positions.weight[:count]
        return rows

    def _convolved(self, clip: torch.Tensor) -> torch.Tensor:
        """(mels, frames) to (rows, width)."""
        from torch.nn import functional

        if self._convolutions:
            rows = clip.T
            for convolution in self._convolutions:
                rows = convolution(rows)
            return rows
        hidden = functional.gelu(self._module.conv1(clip[None]))
        convolved: torch.Tensor = functional.gelu(self._module.conv2(hidden))[0].T
        return convolved

    def _together(self, starts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        import torch

        counts = [len(rows) for rows in starts]
        edges = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=starts[0].device)
        flat = torch.cat(list(starts))
        if self._on_kernels:
            for layer in self._module.layers:
                flat = layer(flat, cu_seqlens=edges)
        else:
            flat = self._through(flat[None], cu_seq_lens_q=edges, max_length_q=max(counts))[0]
        return list(torch.split(flat, counts))

    def _through(self, rows: torch.Tensor, **segments: Any) -> torch.Tensor:
        """(1, rows, width) through torch's layers."""
        for layer in self._module.layers:
            rows = layer(rows, None, **segments)
        return rows


def row_count(frame_count: int) -> int:
    """Rows behind the convolutions of so many frames: the second steps by two."""
    return (frame_count - 1) // 2 + 1


def block_weights(layer: Any, activation: str, team: Team) -> BlockWeights:
    """Packs a layer of Whisper's kind."""
    from shared.kernels.blocks import ACTIVATIONS, BlockWeights, Linear, Norm
    from shared.kernels.program import Heads

    attention = layer.self_attn
    head_count = int(attention.num_heads)
    return BlockWeights(
        attention_norm=Norm.of(layer.self_attn_layer_norm),
        states=Linear.of(team, attention.q_proj, attention.k_proj, attention.v_proj),
        output=Linear.of(team, attention.out_proj),
        feed_norm=Norm.of(layer.final_layer_norm),
        widen=Linear.of(team, layer.fc1),
        narrow=Linear.of(team, layer.fc2),
        activation=ACTIVATIONS[activation],
        heads=Heads(head_count, head_count, int(attention.head_dim)),
    )
