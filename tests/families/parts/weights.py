"""Random weights that make a tiny model's answers vary with the prompt and with the picture.

Knows parameters by their names and shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

GAINS = ("norm", "ln_q", "lambda_", "layer_scale")
"""Parts of names of parameters that multiply: they stay near 1."""


def randomise(model: Any, seed: int, quiet_ids: Sequence[int], gains: Sequence[str] = GAINS) -> None:
    """Fills all parameters; `quiet_ids` get small output logits, so that answers run on."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if any(part in name for part in gains):
                parameter.copy_(noise * 0.1 + (1.0 if name.endswith(("weight", *gains)) else 0.0))
            else:
                parameter.copy_(noise * _scale(name, parameter))
        output = model.get_output_embeddings().weight
        # A placeholder's token may lie behind those that can be generated.
        output[[token for token in quiet_ids if token < len(output)]] *= 0.1


def _scale(name: str, parameter: Any) -> float:
    """Standard deviation of a parameter's values."""
    if parameter.ndim < 2:
        return 0.1
    if "embed_tokens" in name or "lm_head" in name:
        return 0.4
    # Experts' matrices are stacked, and families differ in which side is the input.
    fan_in = parameter[0].numel() ** (0.5 if "experts" in name and parameter.ndim == 3 else 1.0)
    return float(1.5 / fan_in**0.5)
