"""Blocks of InternVL's tower on our CPU kernels.

Knows how these blocks name their parts, and that the gains behind attention and
feed-forward go into the layers in front of them. Does not know the rest of the tower.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.kernels.blocks import BlockWeights
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)


def move_blocks(tower: Any, team: Team) -> bool:
    """Has our kernels compute all blocks of a tower, where they can; the rest stays with torch.

    Returns:
        Whether they do. Where not, the log says why.
    """
    from shared.kernels.blocks import KernelBlock, Workspace, obstacle

    blocks = list(tower.encoder.layer)
    reason = "queries and keys are normalised" if tower.config.use_qk_norm else None
    reason = reason or obstacle(blocks, tower.config.hidden_act)
    if reason is not None:
        logger.info("torch computes this tower: %s", reason)
        return False
    workspace = Workspace(team, blocks[0].lambda_1.dtype)
    for block in blocks:
        block.forward = KernelBlock(_block_weights(block, team), workspace).run_batch
    return True


def _block_weights(block: Any, team: Team) -> BlockWeights:
    """Packs a block."""
    from shared.kernels.blocks import ACTIVATIONS, BlockWeights, Linear, Norm
    from shared.kernels.program import Heads

    attention, feed = block.attention, block.mlp
    _multiply(attention.projection_layer, block.lambda_1)
    _multiply(feed.fc2, block.lambda_2)
    head_count = int(attention.num_heads)
    return BlockWeights(
        attention_norm=Norm.of(block.layernorm_before),
        states=Linear.of(team, attention.q_proj, attention.k_proj, attention.v_proj),
        output=Linear.of(team, attention.projection_layer),
        feed_norm=Norm.of(block.layernorm_after),
        widen=Linear.of(team, feed.fc1),
        narrow=Linear.of(team, feed.fc2),
        activation=ACTIVATIONS[feed.config.hidden_act],
        heads=Heads(head_count, head_count, int(attention.head_dim)),
    )


def _multiply(layer: nn.Linear, gains: torch.Tensor) -> None:
    """Has a layer give its output times `gains`, one for each column."""
    layer.weight.data = layer.weight.data * gains[:, None]
    if layer.bias is not None:
        layer.bias.data = layer.bias.data * gains
