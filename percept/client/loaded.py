"""What a value is, asked of libraries that are loaded already.

A value of a library can only come from a program that imported it, so nothing
here imports torch, NumPy or Pillow.
"""

from __future__ import annotations

import sys
from typing import Any


def is_torch_tensor(value: object) -> bool:
    """Says whether a value is a tensor of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_pil(value: object) -> bool:
    """Says whether a value is a picture of Pillow."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def rank(value: Any) -> int | None:
    """Dimensions of an array or tensor; None for anything else."""
    numpy = sys.modules.get("numpy")
    if is_torch_tensor(value) or (numpy is not None and isinstance(value, numpy.ndarray)):
        return int(value.ndim)
    return None


def is_float_tensor(value: Any) -> bool:
    """Says whether a value is an array or tensor of floating-point numbers."""
    if rank(value) is None:
        return False
    return bool(value.is_floating_point()) if is_torch_tensor(value) else value.dtype.kind == "f"
