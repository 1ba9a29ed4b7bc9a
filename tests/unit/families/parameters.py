"""The weights that a loaded half holds, whatever its class looks like."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shared.families.base import Family

CPU = torch.device("cpu")
HALVES = ("encoder", "language")


def load(family: Family, half: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Loads a half and returns its parameters by name."""
    if half == "encoder":
        return parameters_of(family.tower(CPU, dtype))
    return parameters_of(family.language_model(CPU, dtype, "sdpa"))


def parameters_of(part: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Parameters of all modules that an object of ours holds, at any depth; each once."""
    found: dict[str, torch.Tensor] = {}
    for name, value in getattr(part, "__dict__", {}).items():
        where = f"{path}.{name}".lstrip(".")
        if isinstance(value, nn.Module):
            found |= {f"{where}.{inner}": parameter for inner, parameter in value.named_parameters()}
        elif isinstance(value, nn.Parameter):
            found[where] = value
        elif type(value).__module__.startswith("shared.families"):
            found |= parameters_of(value, where)
    places = {parameter.data_ptr(): name for name, parameter in found.items()}
    return {name: found[name] for name in places.values()}
