"""What the benchmark's model must at least compute, from its configuration and its weights' sizes.

Knows Qwen2-VL's parts. Does not know the machine.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from benchmarks.limits import Work

VISION = ".visual."
EMBEDDING = "embed_tokens"
BF16_BYTES = 2
PATCHES_PER_TOKEN = 4


def work_of(checkpoint: Path, picture_tokens: int) -> Work:
    """Counts a checkpoint's least work.

    Args:
        picture_tokens: of one picture in a prompt.
    """
    vision = json.loads((checkpoint / "config.json").read_text())["vision_config"]
    counts = parameter_counts(checkpoint)
    tower = sum(count for name, count in counts.items() if VISION in name)
    language = {name: count for name, count in counts.items() if VISION not in name}
    layers = sum(count for name, count in language.items() if EMBEDDING not in name)
    patches = PATCHES_PER_TOKEN * picture_tokens
    attention = 4 * patches**2 * vision["embed_dim"] * vision["depth"]
    return Work(
        # Tied to the output layer, the embedding is read whole in each step.
        decode_bytes=BF16_BYTES * sum(language.values()),
        prefill_flops=2.0 * layers,
        picture_flops=2.0 * tower_patches(tower, patches) + attention,
    )


def tower_patches(parameters: int, patches: int) -> float:
    """Multiplications of a tower's matrices. The merger runs once for four patches: a few per cent less."""
    return float(parameters) * patches


def parameter_counts(checkpoint: Path) -> dict[str, int]:
    """Elements of each tensor, from the headers of the weights' files."""
    counts: dict[str, int] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        counts |= {name: math.prod(tensor["shape"]) for name, tensor in header.items()}
    return counts
