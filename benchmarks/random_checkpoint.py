"""Writes a large Qwen2-VL checkpoint with random weights, for measuring what weights cost.

Knows how to fill files tensor by tensor, so that making one takes little memory.
Its answers mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SHARD_BYTES = 256 * 1024 * 1024
VOCABULARY_SIZE = 151_936
EMBEDDING = "model.language_model.embed_tokens.weight"

TEXT = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
}
VISION = {"depth": 12, "embed_dim": 1024, "hidden_size": 896, "num_heads": 16, "mlp_ratio": 4}


@dataclass(frozen=True, slots=True)
class HalfSizes:
    """Bytes of the weights of each half."""

    encoder: int
    language: int

    @property
    def whole(self) -> int:
        """Bytes of the whole model."""
        return self.encoder + self.language


def write_random_checkpoint(folder: Path, seed: int = 0) -> HalfSizes:
    """Writes a checkpoint of about 650 million parameters in bfloat16.

    Tokenizer, template and processors are those of the small Qwen2-VL that percept-tiny grows from.

    Args:
        folder: where to; made if need be.
        seed: of the weights.
    """
    from models.training.export import write_processing
    from models.training.network import new_config

    folder.mkdir(parents=True, exist_ok=True)
    write_processing(folder)
    config = _config(new_config().to_dict())
    config.save_pretrained(folder)
    return write_weights(config, folder, seed)


def _config(small: dict[str, Any]) -> Any:
    from transformers import Qwen2VLConfig

    kept = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    patches = ("patch_size", "spatial_merge_size", "temporal_patch_size", "in_channels")
    vision = {name: small["vision_config"][name] for name in patches if name in small["vision_config"]}
    return Qwen2VLConfig(
        text_config=TEXT,
        vision_config=VISION | vision,
        tie_word_embeddings=True,
        architectures=["Qwen2VLForConditionalGeneration"],
        dtype="bfloat16",
        **{name: small[name] for name in kept if name in small},
    )


def write_weights(config: Any, folder: Path, seed: int, silent_from: int | None = None) -> HalfSizes:
    """Writes random weights in bfloat16 for a Qwen2-VL configuration, shard by shard.

    Args:
        seed: of the weights.
        silent_from: ids from here on get a zero embedding; where it is tied to the output layer,
            such an id has a logit of zero and is never the largest.
    """
    from transformers import Qwen2VLForConditionalGeneration

    with torch.device("meta"):
        shapes = dict(Qwen2VLForConditionalGeneration(config).named_parameters())
    files: dict[str, str] = {}
    generator = torch.Generator().manual_seed(seed)
    for index, names in enumerate(_shards(shapes)):
        tensors = {name: _random(name, shapes[name].shape, generator) for name in names}
        if silent_from is not None and EMBEDDING in tensors:
            tensors[EMBEDDING][silent_from:] = 0
        file = f"model-{index:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    encoder = sum(_byte_count(shapes[name]) for name in files if ".visual." in name)
    return HalfSizes(encoder, sum(_byte_count(shapes[name]) for name in files) - encoder)


def _shards(shapes: dict[str, Any]) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, shape in shapes.items():
        if filled + _byte_count(shape) > SHARD_BYTES and names:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += _byte_count(shape)
    yield names


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if "norm" in name or "ln_q" in name:
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=torch.bfloat16)
    return torch.randn(shape, generator=generator, dtype=torch.bfloat16) * 0.02


def _byte_count(parameter: torch.Tensor) -> int:
    return parameter.numel() * torch.bfloat16.itemsize
