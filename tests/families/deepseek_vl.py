"""DeepSeek-VL, tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase
from tests.families.parts.pixels import CLIP_MEAN, CLIP_STD
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_llama_tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image_placeholder>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

IMAGE_SIZE = 56
PATCH_SIZE = 14
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "vision_use_head": False,
}


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB") -> Path:
    """Writes the checkpoint."""
    from transformers import DeepseekVLConfig

    tokenizer = build_llama_tokenizer(image_token="<image_placeholder>")
    config = DeepseekVLConfig(**common_config(tokenizer))
    processor = image_processor("DeepseekVL") | {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    return save_checkpoint(
        folder,
        config,
        tokenizer,
        TEMPLATE,
        processor_files("DeepseekVL", processor),
        seed=seed,
        shard_size=shard_size,
    )


def common_config(tokenizer: Any) -> dict[str, Any]:
    """What both kinds of the family configure."""
    return {
        "text_config": text_config(len(tokenizer), tokenizer, model_type="llama"),
        "vision_config": VISION,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        "tie_word_embeddings": False,
    }


def image_processor(name: str) -> dict[str, Any]:
    """The image processor's file, without the sizes that are the kind's own."""
    return {
        "image_processor_type": f"{name}ImageProcessor",
        "processor_class": f"{name}Processor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "min_size": 14,
        "resample": 3,
    }


def processor_files(name: str, processor: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The processor's files as the hub has them."""
    rows = (IMAGE_SIZE // PATCH_SIZE) ** 2
    return {
        "preprocessor_config.json": processor,
        "processor_config.json": {"processor_class": f"{name}Processor", "num_image_tokens": rows},
    }


CASE = FamilyCase("deepseek_vl", build, encoder_names=("model.vision_model.", "model.aligner."))
