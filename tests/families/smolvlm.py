"""SmolVLM, tiny: Idefics3's pictures, and videos."""

from __future__ import annotations

from pathlib import Path

from tests.families.case import FamilyCase
from tests.families.idefics3 import MARKS, TEMPLATE, TILE, common_config, image_processor
from tests.families.parts.pixels import HALF
from tests.families.parts.saving import save_checkpoint
from tests.tiny_tokenizers import build_llama_tokenizer

VIDEO_TEMPLATE = TEMPLATE.replace("<|begin_of_text|>", "<|im_start|>")
"""As the hub's: transformers' processor takes it for conversations with videos whatever the file says."""


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB") -> Path:
    """Writes the checkpoint."""
    from transformers import SmolVLMConfig

    tokenizer = build_llama_tokenizer(more=(*MARKS, "<|im_start|>"))
    config = SmolVLMConfig(**common_config(tokenizer, "smolvlm_vision"))
    files = {
        "preprocessor_config.json": image_processor("SmolVLM"),
        "video_preprocessor_config.json": {
            "video_processor_type": "SmolVLMVideoProcessor",
            "processor_class": "SmolVLMProcessor",
            "image_mean": HALF,
            "image_std": HALF,
            "max_image_size": {"longest_edge": TILE},
            "size": {"longest_edge": 2 * TILE},
            "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 2 * TILE}},
            "resample": 1,
        },
        "processor_config.json": {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    }
    return save_checkpoint(folder, config, tokenizer, VIDEO_TEMPLATE, files, seed=seed, shard_size=shard_size)


CASE = FamilyCase(
    "smolvlm",
    build,
    encoder_names=("model.vision_model.", "model.connector."),
    # Its processor writes the pixels of both under one name.
    mixes_modalities=False,
)
