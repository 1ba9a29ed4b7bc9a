"""Blocks of CLIP and SigLIP towers on our CPU kernels.

Knows how these blocks name their parts. Does not know what a family does in
front of them or behind.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from shared.kernels.blocks import BlockWeights
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)


def move_blocks(tower: nn.Module, hidden_act: str, team: Team) -> bool:
    """Has our kernels compute all blocks of a tower, where they can; the rest stays with torch.

    Returns:
        Whether they do. Where not, the log says why.
    """
    from shared.kernels.blocks import KernelBlock, Workspace, obstacle

    blocks: list[Any] = [module for module in tower.modules() if hasattr(module, "layer_norm1")]
    reason = obstacle(blocks, hidden_act)
    if reason is not None:
        logger.info("torch computes this tower: %s", reason)
        return False
    workspace = Workspace(team, blocks[0].layer_norm1.weight.dtype)
    for block in blocks:
        block.forward = KernelBlock(_block_weights(block, team), workspace).run_batch
    return True


def _block_weights(block: Any, team: Team) -> BlockWeights:
    """Packs a block of CLIP or of SigLIP, which name their parts alike."""
    from shared.kernels.blocks import ACTIVATIONS, BlockWeights, Linear, Norm
    from shared.kernels.program import Heads

    attention, feed = block.self_attn, block.mlp
    head_count = int(attention.num_heads)
    return BlockWeights(
        attention_norm=Norm.of(block.layer_norm1),
        states=Linear.of(team, attention.q_proj, attention.k_proj, attention.v_proj),
        output=Linear.of(team, attention.out_proj),
        feed_norm=Norm.of(block.layer_norm2),
        widen=Linear.of(team, feed.fc1),
        narrow=Linear.of(team, feed.fc2),
        activation=ACTIVATIONS[attention.config.hidden_act],
        heads=Heads(head_count, head_count, int(attention.head_dim)),
    )
