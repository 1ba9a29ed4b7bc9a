"""GLM-4V, tiny."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase, OracleOverrides
from tests.families.parts.pixels import CLIP_MEAN, CLIP_STD
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import HIDDEN_SIZE, text_config
from tests.tiny_tokenizers import build_qwen_tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif part['type'] == 'video' %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

VISION = {
    "depth": 3,
    "hidden_size": 32,
    "out_hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_heads": 2,
    "image_size": 112,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB", tie: bool = False) -> Path:
    """Writes the checkpoint; `tie` shares the input embedding with the output layer."""
    from transformers import Glm4vConfig

    tokenizer = build_qwen_tokenizer(special_tokens=SPECIAL_TOKENS, end="<|user|>")
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 3, 3],
        "partial_rotary_factor": 1.0,
    }
    ids = tokenizer.convert_tokens_to_ids
    config = Glm4vConfig(
        text_config=text_config(len(tokenizer), tokenizer, rope_parameters=rope),
        vision_config=VISION,
        image_token_id=ids("<|image|>"),
        video_token_id=ids("<|video|>"),
        image_start_token_id=ids("<|begin_of_image|>"),
        image_end_token_id=ids("<|end_of_image|>"),
        video_start_token_id=ids("<|begin_of_video|>"),
        video_end_token_id=ids("<|end_of_video|>"),
        tie_word_embeddings=tie,
    )
    return save_checkpoint(
        folder, config, tokenizer, TEMPLATE, _processor_files(), seed=seed, shard_size=shard_size
    )


def _processor_files() -> dict[str, dict[str, Any]]:
    """The processor's files as the hub has them, with smaller bounds."""
    common = {
        "processor_class": "Glm4vProcessor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    picture = {"size": {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 168 * 168}}
    video = {"size": {"shortest_edge": 2 * 56 * 56, "longest_edge": 16 * 168 * 168}}
    return {
        "preprocessor_config.json": common | picture | {"image_processor_type": "Glm4vImageProcessor"},
        "video_preprocessor_config.json": common | video | {"video_processor_type": "Glm4vVideoProcessor"},
    }


def make_inputs(
    processor: Any,
    text: str,
    pictures: Sequence[Any],
    videos: Sequence[tuple[Any, Any]],
    arguments: Mapping[str, Any],
) -> Mapping[str, Any]:
    """The processor's inputs; with pictures and videos together, all as pictures.

    Groups of frames have the tokens of pictures, so that transformers counts those of
    both kinds together and refuses the prompt. What it computes for a group is what it
    computes for a picture.
    """
    given: dict[str, Any] = {"text": [text], "return_tensors": "pt", **arguments}
    if pictures:
        given["images"] = list(pictures)
    if videos:
        frames, metadata = zip(*videos, strict=True)
        given |= {"videos": list(frames), "video_metadata": list(metadata), "do_sample_frames": False}
    inputs = dict(processor(**given))
    return _as_pictures(inputs) if pictures and videos else inputs


def _as_pictures(inputs: dict[str, Any]) -> dict[str, Any]:
    import torch

    kinds = inputs["mm_token_type_ids"][0].tolist()
    runs = [kind for kind, _ in itertools.groupby(kinds) if kind]
    pictures = iter(_patches(inputs["pixel_values"], inputs.pop("image_grid_thw").tolist()))
    grids = [[1, *sides] for time, *sides in inputs.pop("video_grid_thw").tolist() for _ in range(time)]
    groups = iter(_patches(inputs.pop("pixel_values_videos"), grids))
    taken = [next(pictures if kind == 1 else groups) for kind in runs]
    return inputs | {
        "pixel_values": torch.cat([patches for patches, _ in taken]),
        "image_grid_thw": torch.tensor([grid for _, grid in taken]),
        "mm_token_type_ids": inputs["mm_token_type_ids"].clamp(max=1),
    }


def _patches(pixels: Any, grids: list[list[int]]) -> list[tuple[Any, list[int]]]:
    """The patches of each grid, and the grid."""
    counts = [time * height * width for time, height, width in grids]
    return list(zip(pixels.split(counts), grids, strict=True))


CASE = FamilyCase(
    "glm4v",
    build,
    encoder_names=("model.visual.",),
    fewest_frames=2,
    oracle=OracleOverrides(make_inputs=make_inputs),
)
