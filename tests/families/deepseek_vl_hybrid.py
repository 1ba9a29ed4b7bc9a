"""DeepSeek-VL with two towers, tiny."""

from __future__ import annotations

from pathlib import Path

from tests.families.case import FamilyCase
from tests.families.deepseek_vl import (
    IMAGE_SIZE,
    TEMPLATE,
    common_config,
    image_processor,
    processor_files,
)
from tests.families.parts.pixels import CLIP_MEAN, CLIP_STD
from tests.families.parts.saving import save_checkpoint
from tests.tiny_tokenizers import build_llama_tokenizer

LARGE_SIZE = 96


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB") -> Path:
    """Writes the checkpoint."""
    from transformers import DeepseekVLHybridConfig

    tokenizer = build_llama_tokenizer(image_token="<image_placeholder>")
    config = DeepseekVLHybridConfig(
        **common_config(tokenizer),
        high_res_vision_config={
            "model_type": "sam_vision_model",
            "hidden_size": 32,
            "output_channels": 8,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": LARGE_SIZE,
            "patch_size": 16,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 48,
        },
    )
    processor = image_processor("DeepseekVLHybrid") | {
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "high_res_size": {"height": LARGE_SIZE, "width": LARGE_SIZE},
        "high_res_image_mean": CLIP_MEAN,
        "high_res_image_std": CLIP_STD,
        "high_res_resample": 3,
    }
    return save_checkpoint(
        folder,
        config,
        tokenizer,
        TEMPLATE,
        processor_files("DeepseekVLHybrid", processor),
        seed=seed,
        shard_size=shard_size,
    )


CASE = FamilyCase(
    "deepseek_vl_hybrid",
    build,
    encoder_names=("model.vision_model.", "model.high_res_vision", "model.aligner."),
)
