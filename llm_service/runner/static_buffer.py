"""Memory of a step's inputs, allocated once.

Knows one tensor on the host and its twin on the device. Does not know what it
holds.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch


class StaticBuffer:
    """A tensor that keeps its address from step to step.

    A captured CUDA graph reads and writes fixed addresses, so every input of
    the model lives in one of these, on the CPU too. The host side is pinned for
    CUDA, so that copies need not wait; a step ends by reading its tokens, hence
    no copy is under way when the host side is filled again.

    Attributes:
        array: the host side, to be filled; on the CPU it is the tensor itself.
    """

    array: npt.NDArray[Any]

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self._host = torch.zeros(shape, dtype=dtype, pin_memory=on_cuda)
        self._tensor = torch.zeros(shape, dtype=dtype, device=device) if on_cuda else self._host
        self.array = self._host.numpy()

    def publish(self, *index: slice) -> torch.Tensor:
        """The part that was filled, as a view on the device."""
        tensor = self._tensor[index]
        if self._tensor is not self._host:
            tensor.copy_(self._host[index], non_blocking=True)
        return tensor
