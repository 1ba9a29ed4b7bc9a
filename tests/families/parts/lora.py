"""Adapters as PEFT saves them, random, and the same merged into a model's weights.

Knows the files. Does not know any family.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


def write_adapter(
    checkpoint: Path,
    folder: Path,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: int,
    seed: int,
    layers: str = "model.layers.",
    listed: bool = False,
) -> None:
    """Writes an adapter for the matrices of a checkpoint's layers whose modules end in `targets`.

    Args:
        layers: what the names of the layers' tensors begin with.
        listed: name the modules' ends alone, not an expression for their whole names.
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed + rank)
    tensors = {}
    for name, (outputs, inputs) in sorted(_matrices(checkpoint, targets, layers)):
        module = PREFIX + name.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) / rank**0.5
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": "TBA",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": [],
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(targets) if listed else rf"model\.layers\.\d+\..*\.({'|'.join(targets)})",
        "task_type": "CAUSAL_LM",
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))


@contextmanager
def merged_weights(
    model: Any, folder: Path, loaded_name: Callable[[str], str] = lambda name: name
) -> Iterator[None]:
    """The model with an adapter added into its weights (Hu et al. 2021, equation 3), taken out at the end.

    Args:
        loaded_name: a parameter's name in the model, by its name in the adapter.
    """
    import torch
    from safetensors.torch import load_file

    config = json.loads((folder / CONFIG_FILE).read_text())
    tensors = load_file(folder / WEIGHTS_FILE)
    plain = {}
    with torch.no_grad():
        for name, narrow in tensors.items():
            if name.endswith(".lora_A.weight"):
                module = name.removesuffix(".lora_A.weight")
                weight = model.get_parameter(loaded_name(f"{module.removeprefix(PREFIX)}.weight"))
                plain[module] = (weight, weight.clone())
                weight += config["lora_alpha"] / config["r"] * tensors[f"{module}.lora_B.weight"] @ narrow
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in plain.values():
                weight.copy_(before)


def _matrices(checkpoint: Path, targets: Sequence[str], layers: str) -> Iterator[tuple[str, tuple[int, int]]]:
    from safetensors import safe_open

    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name.startswith(layers) and name.split(".")[-2] in targets:
                    outputs, inputs = tensors.get_slice(name).get_shape()
                    yield name, (outputs, inputs)
