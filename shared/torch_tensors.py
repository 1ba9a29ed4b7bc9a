"""Between torch tensors and raw bytes.

Knows the element types that cross the wire, under torch's names. Does not know
what the tensors mean.
"""

from __future__ import annotations

import torch

from shared.families.base import RawTensor

TORCH_TYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in TORCH_TYPES.items()}


def to_raw(tensor: torch.Tensor) -> RawTensor:
    """Copies a tensor to row-major bytes.

    Args:
        tensor: any shape and device, of a type in `TORCH_TYPES`.
    """
    dense = tensor.detach().to("cpu").contiguous()
    # A view as bytes, as NumPy has no bfloat16; flat first, since a scalar cannot be viewed.
    data = dense.reshape(-1).view(torch.uint8).numpy().tobytes()
    return RawTensor(_NAMES[dense.dtype], tuple(dense.shape), data)


def from_raw(raw: RawTensor) -> torch.Tensor:
    """Copies raw bytes into a tensor on the CPU, in their own element type."""
    flat = torch.frombuffer(bytearray(raw.data), dtype=TORCH_TYPES[raw.data_type])
    return flat.reshape(raw.shape)


def choose_dtype(name: str, device: torch.device, configured: str | None) -> torch.dtype:
    """Resolves a `--dtype` setting.

    Args:
        name: "auto" or a key of `TORCH_TYPES`.
        device: where the weights go.
        configured: the checkpoint's own type, for example "bfloat16".

    Returns:
        For "auto": on CUDA the checkpoint's own half type (bfloat16 where it
        names none), on the CPU float32, in which processors without native
        half arithmetic are fastest.
    """
    if name != "auto":
        return TORCH_TYPES[name]
    if device.type == "cpu":
        return torch.float32
    return torch.float16 if configured == "float16" else torch.bfloat16
