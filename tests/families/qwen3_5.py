"""Qwen3.5, tiny: of five layers three are linear, the second and the last are not."""

from __future__ import annotations

from pathlib import Path

from tests.families.case import FamilyCase
from tests.families.parts.qwen_chat import QWEN_TEMPLATE
from tests.families.parts.saving import save_checkpoint
from tests.families.qwen3_vl import VISION, processor_files, qwen3_config
from tests.tiny_tokenizers import build_qwen_tokenizer

TEXT = {
    "num_hidden_layers": 5,
    "layer_types": [
        "linear_attention",
        "full_attention",
        "linear_attention",
        "linear_attention",
        "full_attention",
    ],
    "head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
}


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB", tie: bool = False) -> Path:
    """Writes the checkpoint; `tie` shares the input embedding with the output layer."""
    from transformers import Qwen3_5Config

    tokenizer = build_qwen_tokenizer()
    vision = {name: value for name, value in VISION.items() if name != "deepstack_visual_indexes"}
    config = Qwen3_5Config(**qwen3_config(tokenizer, vision, tie=tie, **TEXT))
    files = processor_files()
    return save_checkpoint(folder, config, tokenizer, QWEN_TEMPLATE, files, seed=seed, shard_size=shard_size)


CASE = FamilyCase(
    "qwen3_5",
    build,
    encoder_names=("model.visual.",),
    shares_prefixes=False,
    video_size=(128, 96),
    fewest_frames=2,
)
