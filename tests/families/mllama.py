"""Llama 3.2 Vision, tiny: up to four tiles of 28 pixels, every second layer looks, the hub's template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase, OracleOverrides
from tests.families.parts.names import newer_name
from tests.families.parts.pixels import CLIP_MEAN, CLIP_STD
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_qwen_tokenizer

BEGIN, END, PICTURE = "<|begin_of_text|>", "<|eot_id|>", "<|image|>"
MARKS = ("<|endoftext|>", BEGIN, "<|start_header_id|>", "<|end_header_id|>", END, "<|python_tag|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TILE, PATCH, TILES, WIDTH = 28, 14, 4, 32
LEVELS = [0, 1]


def build(
    folder: Path, *, seed: int = 0, shard_size: str = "5GB", text: Mapping[str, Any] | None = None
) -> Path:
    """Writes the checkpoint.

    Args:
        text: further fields of the text model's configuration.
    """
    from tokenizers import processors
    from transformers import MllamaConfig

    tokenizer = build_qwen_tokenizer(special_tokens=(*MARKS, PICTURE), end=END)
    tokenizer.bos_token = BEGIN
    # As the hub's does: whatever is not a conversation begins with the begin token.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.bos_token_id)]
    )
    # As in the hub's: the picture's token lies behind the words that can be generated.
    size = tokenizer.convert_tokens_to_ids(PICTURE)
    config = MllamaConfig(
        vision_config={
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_global_layers": 2,
            "attention_heads": 2,
            "intermediate_size": 48,
            "vision_output_dim": WIDTH * (1 + len(LEVELS)),
            "image_size": TILE,
            "patch_size": PATCH,
            "max_num_tiles": TILES,
            "intermediate_layers_indices": LEVELS,
        },
        text_config=text_config(size, tokenizer, num_hidden_layers=4)
        | {"cross_attention_layers": [1, 3]}
        | dict(text or {}),
        image_token_index=size,
    )
    return save_checkpoint(
        folder,
        config,
        tokenizer,
        TEMPLATE,
        {
            "preprocessor_config.json": {
                "image_processor_type": "MllamaImageProcessor",
                "processor_class": "MllamaProcessor",
                "do_convert_rgb": True,
                "do_normalize": True,
                "do_pad": True,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": CLIP_MEAN,
                "image_std": CLIP_STD,
                "max_image_tiles": TILES,
                "resample": 2,
                "rescale_factor": 1 / 255,
                "size": {"height": TILE, "width": TILE},
            },
        },
        seed=seed,
        shard_size=shard_size,
        change=open_gates,
    )


def open_gates(model: Any) -> None:
    """Lets what comes through gates count: with gates near 0 a picture would hardly be seen."""
    import torch

    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "gate" in name and parameter.numel() == 1:
                parameter.add_(0.8)


def make_inputs(
    processor: Any, text: str, pictures: list[Any], videos: list[Any], arguments: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The processor's own, with one begin token: it writes one into the text, and its tokenizer another."""
    given = {"images": pictures} if pictures else {}
    return processor(text=[text], add_special_tokens=False, return_tensors="pt", **given, **arguments)


def tower_pixels(tower: Any, features: Any) -> Mapping[str, Any]:
    """A picture's tiles with the places that hold none, as the processor gives them."""
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    return dict(zip(names, tower.padded([features]), strict=True))


def image_features(model: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """The states of each picture, of all places for tiles, as the model's forward composes them."""
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    hidden = model.model.vision_model(**{name: inputs[name] for name in names}).last_hidden_state
    states = model.model.multi_modal_projector(hidden)[0]
    return [one.flatten(0, 1) for one in states]


CASE = FamilyCase(
    "mllama",
    build,
    encoder_names=("vision_model.", "multi_modal_projector."),
    other_names=(newer_name,),
    tower_pixels=tower_pixels,
    rows_in_front=TILES * ((TILE // PATCH) ** 2 + 1),
    oracle=OracleOverrides(make_inputs=make_inputs, image_features=image_features),
)
