"""LLaVA, tiny: CLIP or SigLIP towers, Llama, Mistral or Qwen2 behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tests.families.case import FamilyCase
from tests.families.parts.names import newer_name, with_wrapped_tower
from tests.families.parts.pixels import CLIP_MEAN, CLIP_STD, HALF
from tests.families.parts.pixtral import (
    PIXTRAL_TEMPLATE,
    PIXTRAL_TOKENS,
    PIXTRAL_VISION,
    pixtral_files,
)
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_llama_tokenizer

LLAVA_PARTS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

LLAVA_STRINGS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

IMAGE_SIZE = 56
PATCH_SIZE = 14


def build(
    folder: Path,
    *,
    seed: int = 0,
    shard_size: str = "5GB",
    tie: bool = False,
    template: Literal["parts", "strings"] = "parts",
    vision: Literal["clip", "siglip", "pixtral"] = "clip",
    text: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama",
) -> Path:
    """Writes the checkpoint.

    Args:
        tie: share the input embedding with the output layer.
        template: what the chat template takes as content.
        vision: the tower.
        text: the language model.
    """
    if vision == "pixtral":
        return build_pixtral(folder, seed=seed, shard_size=shard_size, tie=tie)
    from transformers import LlavaConfig

    tokenizer = build_llama_tokenizer()
    config = LlavaConfig(
        vision_config=vision_config(vision, IMAGE_SIZE, PATCH_SIZE),
        # A few rows of padding beyond the tokenizer, as the hub's checkpoints have.
        text_config=text_config(len(tokenizer) + 8, tokenizer, model_type=text),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy=_strategy(vision),
        tie_word_embeddings=tie,
    )
    return save_checkpoint(
        folder,
        config,
        tokenizer,
        LLAVA_PARTS_TEMPLATE if template == "parts" else LLAVA_STRINGS_TEMPLATE,
        {
            "preprocessor_config.json": _image_processor(vision),
            "processor_config.json": {
                "processor_class": "LlavaProcessor",
                "patch_size": PATCH_SIZE,
                "image_token": "<image>",
                "vision_feature_select_strategy": _strategy(vision),
                # The processor counts the class token that CLIP has and SigLIP has not.
                "num_additional_image_tokens": 1 if vision == "clip" else 0,
            },
        },
        seed=seed,
        shard_size=shard_size,
    )


def vision_config(vision: str, image_size: int, patch_size: int) -> dict[str, Any]:
    """Fields of a tower's configuration, "clip" or "siglip"."""
    return {
        "model_type": f"{vision}_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
    }


def build_pixtral(folder: Path, *, seed: int, shard_size: str, tie: bool) -> Path:
    """Writes a checkpoint as pixtral-12b's."""
    from transformers import LlavaConfig

    tokenizer = build_llama_tokenizer(image_token="[IMG]", more=PIXTRAL_TOKENS)
    config = LlavaConfig(
        vision_config=PIXTRAL_VISION,
        text_config=text_config(len(tokenizer) + 8, tokenizer, model_type="mistral"),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=tie,
    )
    files = pixtral_files(longest_edge=64, merge_size=1)
    return save_checkpoint(
        folder, config, tokenizer, PIXTRAL_TEMPLATE, files, seed=seed, shard_size=shard_size
    )


def _strategy(vision: str) -> str:
    return "default" if vision == "clip" else "full"


def _image_processor(vision: str) -> dict[str, Any]:
    if vision == "siglip":
        return {
            "image_processor_type": "SiglipImageProcessor",
            "processor_class": "LlavaProcessor",
            "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "image_mean": HALF,
            "image_std": HALF,
            "resample": 3,
        }
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": IMAGE_SIZE},
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
    }


CASE = FamilyCase(
    "llava",
    build,
    encoder_names=("vision_tower.", "multi_modal_projector."),
    other_names=(newer_name, with_wrapped_tower),
    variants={
        "": {},
        "siglip_qwen2": {"vision": "siglip", "text": "qwen2", "template": "strings"},
        "mistral": {"text": "mistral"},
        "pixtral": {"vision": "pixtral"},
    },
)
