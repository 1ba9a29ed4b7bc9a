"""Aria, tiny but for its squares, which have 490 pixels a side at least: patches are large instead."""

from __future__ import annotations

from pathlib import Path

from tests.families.case import FamilyCase
from tests.families.parts.pixels import HALF
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_llama_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<fim_prefix><|img|><fim_suffix>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = {"490": 9, "980": 12}


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB") -> Path:
    """Writes the checkpoint."""
    from transformers import AriaConfig

    tokenizer = build_llama_tokenizer(image_token="<|img|>", more=("<fim_prefix>", "<fim_suffix>"))
    config = AriaConfig(
        text_config=text_config(len(tokenizer), tokenizer)
        | {"model_type": "aria_text", "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
        vision_config={
            "model_type": "idefics3_vision",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 980,
            "patch_size": 70,
        },
        projector_patch_to_query_dict={"49": ROWS["490"], "196": ROWS["980"]},
        image_token_index=tokenizer.convert_tokens_to_ids("<|img|>"),
    )
    return save_checkpoint(
        folder,
        config,
        tokenizer,
        TEMPLATE,
        {
            "preprocessor_config.json": {
                "image_processor_type": "AriaImageProcessor",
                "processor_class": "AriaProcessor",
                "image_mean": HALF,
                "image_std": HALF,
                "max_image_size": 490,
                "min_image_size": 336,
                "split_image": False,
            },
            "processor_config.json": {"processor_class": "AriaProcessor", "size_conversion": ROWS},
        },
        seed=seed,
        shard_size=shard_size,
    )


CASE = FamilyCase("aria", build, encoder_names=("vision_tower.", "multi_modal_projector."))
