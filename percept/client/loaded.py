"""What a value is, asked of libraries that are loaded already.

A value of a library can only come from a program that imported it whole, so
nothing here imports torch, NumPy or Pillow, and one that another thread is just
importing counts as absent.
"""

from __future__ import annotations

import sys
from typing import Any


def is_torch_tensor(value: object) -> bool:
    """Says whether a value is a tensor of torch."""
    return _is_a(value, "torch", "Tensor")


def is_pil(value: object) -> bool:
    """Says whether a value is a picture of Pillow."""
    return _is_a(value, "PIL.Image", "Image")


def rank(value: Any) -> int | None:
    """Dimensions of an array or tensor; None for anything else."""
    if is_torch_tensor(value) or _is_a(value, "numpy", "ndarray"):
        return int(value.ndim)
    return None


def is_float_tensor(value: Any) -> bool:
    """Says whether a value is an array or tensor of floating-point numbers."""
    if rank(value) is None:
        return False
    return bool(value.is_floating_point()) if is_torch_tensor(value) else value.dtype.kind == "f"


def _is_a(value: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)
