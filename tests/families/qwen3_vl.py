"""Qwen3-VL, tiny: three levels of further rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase
from tests.families.parts.pixels import HALF
from tests.families.parts.qwen_chat import QWEN_TEMPLATE
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import HIDDEN_SIZE, text_config
from tests.tiny_tokenizers import build_qwen_tokenizer

VISION = {
    "depth": 4,
    "hidden_size": 32,
    "out_hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 2],
}


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB", tie: bool = True) -> Path:
    """Writes the checkpoint; `tie` shares the input embedding with the output layer."""
    from transformers import Qwen3VLConfig

    tokenizer = build_qwen_tokenizer()
    config = Qwen3VLConfig(**qwen3_config(tokenizer, VISION, tie=tie))
    files = processor_files()
    return save_checkpoint(folder, config, tokenizer, QWEN_TEMPLATE, files, seed=seed, shard_size=shard_size)


def qwen3_config(tokenizer: Any, vision: dict[str, Any], *, tie: bool, **text: Any) -> dict[str, Any]:
    """Fields of a configuration of the Qwen3-VL families; `text` adds to the language model's."""
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [3, 3, 2], "mrope_interleaved": True}
    return {
        "text_config": text_config(
            len(tokenizer), tokenizer, **({"head_dim": 16, "rope_parameters": rope} | text)
        ),
        "vision_config": vision,
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "tie_word_embeddings": tie,
    }


def processor_files() -> dict[str, dict[str, Any]]:
    """The processor's files as the hub has them, with smaller bounds."""
    common = {
        "processor_class": "Qwen3VLProcessor",
        "image_mean": HALF,
        "image_std": HALF,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    picture = {"size": {"shortest_edge": 64 * 64, "longest_edge": 192 * 192}}
    video = {"size": {"shortest_edge": 64 * 64, "longest_edge": 16 * 192 * 192}}
    return {
        "preprocessor_config.json": common | picture | {"image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config.json": common | video | {"video_processor_type": "Qwen3VLVideoProcessor"},
    }


CASE = FamilyCase("qwen3_vl", build, encoder_names=("model.visual.",), video_size=(128, 96), fewest_frames=2)
