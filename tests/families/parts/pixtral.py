"""Pixtral's pictures, tiny: tower, processor, tokens and chat template."""

from __future__ import annotations

from typing import Any

from tests.families.parts.pixels import CLIP_MEAN, CLIP_STD

PATCH_SIZE = 4

PIXTRAL_TOKENS = ("[INST]", "[/INST]", "[IMG_BREAK]", "[IMG_END]")

PIXTRAL_VISION = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 16,
    "image_size": 64,
    "patch_size": PATCH_SIZE,
    "hidden_act": "silu",
}

PIXTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST]"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}[IMG]{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}[/INST]"
    "{% else %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)


def pixtral_files(longest_edge: int, merge_size: int) -> dict[str, dict[str, Any]]:
    """The processor's files as the hub has them."""
    return {
        "preprocessor_config.json": {
            "image_processor_type": "PixtralImageProcessor",
            "processor_class": "PixtralProcessor",
            "size": {"longest_edge": longest_edge},
            "patch_size": {"height": PATCH_SIZE, "width": PATCH_SIZE},
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "resample": 3,
        },
        "processor_config.json": {
            "processor_class": "PixtralProcessor",
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": merge_size,
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        },
    }
