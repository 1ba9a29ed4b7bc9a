"""LLaVA-OneVision, tiny: any resolution up to a number of tiles, and videos."""

from __future__ import annotations

from pathlib import Path

from tests.families.case import FamilyCase
from tests.families.llava import vision_config
from tests.families.parts.names import newer_name, with_wrapped_tower
from tests.families.parts.pixels import HALF
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_qwen_tokenizer

SIDE = 28
# An odd number of patches along a side, as the real towers have: halving rounds up.
PATCH_SIZE = 9
PATCHES = SIDE // PATCH_SIZE
PINPOINTS = [[height * SIDE, width * SIDE] for height in (1, 2, 3) for width in (1, 2, 3)]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'video' %}<video>"
    "{% else %}\n{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(
    folder: Path, *, seed: int = 0, shard_size: str = "5GB", tie: bool = True, most_tiles: int = 3
) -> Path:
    """Writes the checkpoint.

    Args:
        tie: share the input embedding with the output layer.
        most_tiles: so many tiles' patches a picture may have before it is shrunk.
    """
    from transformers import LlavaOnevisionConfig

    tokenizer = build_qwen_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    aspect = f"anyres_max_{most_tiles}"
    config = LlavaOnevisionConfig(
        vision_config=vision_config("siglip", SIDE, PATCH_SIZE) | {"vision_use_head": False},
        text_config=text_config(len(tokenizer) + 8, tokenizer, model_type="qwen2", tie_word_embeddings=tie),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=aspect,
        tie_word_embeddings=tie,
    )
    size = {"height": SIDE, "width": SIDE}
    pixels = {
        "size": size,
        "image_mean": HALF,
        "image_std": HALF,
        "processor_class": "LlavaOnevisionProcessor",
    }
    files = {
        "preprocessor_config.json": pixels
        | {"image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": PINPOINTS},
        "video_preprocessor_config.json": pixels | {"video_processor_type": "LlavaOnevisionVideoProcessor"},
        "processor_config.json": {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": PATCHES**2,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": aspect,
            "image_token": "<image>",
            "video_token": "<video>",
        },
    }
    return save_checkpoint(folder, config, tokenizer, TEMPLATE, files, seed=seed, shard_size=shard_size)


CASE = FamilyCase(
    "llava_onevision",
    build,
    encoder_names=("vision_tower.", "multi_modal_projector.", "image_newline"),
    variants={"": {}, "large": {"tie": False, "most_tiles": 9}},
    video_size=(40, 32),
    other_names=(newer_name, with_wrapped_tower),
)
