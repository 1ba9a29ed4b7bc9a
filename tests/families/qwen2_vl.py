"""Qwen2-VL, tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase
from tests.families.parts.names import newer_name
from tests.families.parts.pixels import CLIP_MEAN, CLIP_STD
from tests.families.parts.qwen_chat import QWEN_TEMPLATE
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import HIDDEN_SIZE, text_config
from tests.tiny_tokenizers import build_qwen_tokenizer

VISION = {
    "depth": 2,
    "embed_dim": 32,
    "hidden_size": HIDDEN_SIZE,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB", tie: bool = True) -> Path:
    """Writes the checkpoint; `tie` shares the input embedding with the output layer."""
    from transformers import Qwen2VLConfig

    tokenizer = build_qwen_tokenizer()
    config = Qwen2VLConfig(**qwen_config(tokenizer, VISION, tie=tie))
    files = processor_files("Qwen2VLProcessor")
    return save_checkpoint(folder, config, tokenizer, QWEN_TEMPLATE, files, seed=seed, shard_size=shard_size)


def qwen_config(tokenizer: Any, vision: dict[str, Any], *, tie: bool) -> dict[str, Any]:
    """Fields of a configuration of Qwen2-VL or Qwen2.5-VL."""
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    return {
        "text_config": text_config(len(tokenizer), tokenizer, rope_parameters=rope),
        "vision_config": vision,
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "tie_word_embeddings": tie,
    }


def processor_files(processor_class: str) -> dict[str, dict[str, Any]]:
    """The processor's files as the hub has them."""
    common = {
        "processor_class": processor_class,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "min_pixels": 56 * 56,
        "max_pixels": 168 * 168,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    return {
        "preprocessor_config.json": common | {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": common | {"video_processor_type": "Qwen2VLVideoProcessor"},
    }


CASE = FamilyCase("qwen2_vl", build, encoder_names=("visual.",), other_names=(newer_name,))
