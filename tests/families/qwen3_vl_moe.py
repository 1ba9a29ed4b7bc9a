"""Qwen3-VL with experts, tiny: every other layer has five experts, two for each token."""

from __future__ import annotations

from pathlib import Path

from tests.families.case import FamilyCase
from tests.families.parts.qwen_chat import QWEN_TEMPLATE
from tests.families.parts.saving import save_checkpoint
from tests.families.qwen3_vl import VISION, processor_files, qwen3_config
from tests.tiny_tokenizers import build_qwen_tokenizer

EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "mlp_only_layers": [1],
}


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB", tie: bool = True) -> Path:
    """Writes the checkpoint; `tie` shares the input embedding with the output layer."""
    from transformers import Qwen3VLMoeConfig

    tokenizer = build_qwen_tokenizer()
    config = Qwen3VLMoeConfig(**qwen3_config(tokenizer, VISION, tie=tie, **EXPERTS))
    files = processor_files()
    return save_checkpoint(folder, config, tokenizer, QWEN_TEMPLATE, files, seed=seed, shard_size=shard_size)


CASE = FamilyCase(
    "qwen3_vl_moe", build, encoder_names=("model.visual.",), video_size=(128, 96), fewest_frames=2
)
