"""Qwen2.5-VL, tiny: windows in the tower, and one layer that attends to all."""

from __future__ import annotations

from pathlib import Path

from tests.families.case import FamilyCase
from tests.families.parts.names import newer_name
from tests.families.parts.qwen_chat import QWEN_TEMPLATE
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import HIDDEN_SIZE
from tests.families.qwen2_vl import processor_files, qwen_config
from tests.tiny_tokenizers import build_qwen_tokenizer

VISION = {
    "depth": 3,
    "hidden_size": 32,
    "out_hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB", tie: bool = True) -> Path:
    """Writes the checkpoint; `tie` shares the input embedding with the output layer."""
    from transformers import Qwen2_5_VLConfig

    tokenizer = build_qwen_tokenizer()
    config = Qwen2_5_VLConfig(**qwen_config(tokenizer, VISION, tie=tie))
    files = processor_files("Qwen2_5_VLProcessor")
    return save_checkpoint(folder, config, tokenizer, QWEN_TEMPLATE, files, seed=seed, shard_size=shard_size)


CASE = FamilyCase("qwen2_5_vl", build, encoder_names=("visual.",), other_names=(newer_name,))
