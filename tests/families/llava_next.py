"""LLaVA-NeXT, tiny: tiles in any resolution, CLIP or SigLIP towers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tests.families.case import FamilyCase
from tests.families.llava import LLAVA_PARTS_TEMPLATE, vision_config
from tests.families.parts.names import newer_name, with_wrapped_tower
from tests.families.parts.pixels import CLIP_MEAN, CLIP_STD
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_llama_tokenizer

SIDE = 28
PATCH_SIZE = 7
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def build(
    folder: Path,
    *,
    seed: int = 0,
    shard_size: str = "5GB",
    tie: bool = False,
    vision: Literal["clip", "siglip"] = "clip",
    text: Literal["llama", "mistral"] = "mistral",
    layers: int | list[int] = -2,
) -> Path:
    """Writes the checkpoint.

    Args:
        tie: share the input embedding with the output layer.
        vision: the tower.
        text: the language model.
        layers: layers of the tower whose rows are taken, side by side.
    """
    from transformers import LlavaNextConfig

    tokenizer = build_llama_tokenizer()
    strategy = "default" if vision == "clip" else "full"
    config = LlavaNextConfig(
        vision_config=vision_config(vision, SIDE, PATCH_SIZE),
        text_config=text_config(len(tokenizer) + 8, tokenizer, model_type=text),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=layers,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=tie,
    )
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "LlavaNextImageProcessor",
            "processor_class": "LlavaNextProcessor",
            "size": {"shortest_edge": SIDE},
            "crop_size": {"height": SIDE, "width": SIDE},
            "image_grid_pinpoints": PINPOINTS,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
        "processor_config.json": {
            "processor_class": "LlavaNextProcessor",
            "patch_size": PATCH_SIZE,
            "image_token": "<image>",
            "vision_feature_select_strategy": strategy,
            "num_additional_image_tokens": 1 if vision == "clip" else 0,
        },
    }
    return save_checkpoint(
        folder, config, tokenizer, LLAVA_PARTS_TEMPLATE, files, seed=seed, shard_size=shard_size
    )


CASE = FamilyCase(
    "llava_next",
    build,
    encoder_names=("vision_tower.", "multi_modal_projector.", "image_newline"),
    variants={"": {}, "siglip_llama": {"vision": "siglip", "text": "llama", "layers": [-1, 1]}},
    other_names=(newer_name, with_wrapped_tower),
)
