"""Small lists to the device without waiting for it.

Knows pinned memory. Does not know what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(
    values: Sequence[int] | Sequence[float] | Sequence[Sequence[int]],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """A tensor of `values` on the device.

    On CUDA the numbers pass through pinned memory, from which a copy does not
    stop the host; torch gives that memory out again only when the copy is done.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
