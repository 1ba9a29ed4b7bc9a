"""Memory of a step's inputs, allocated once.

Knows one tensor on the host and its twin on the device, and when the host side
may be written again. Does not know what it holds.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy.typing as npt
import torch


class StaticBuffer:
    """A tensor that keeps its address from step to step.

    A captured CUDA graph reads and writes fixed addresses, so every input of
    the model lives in one of these, on the CPU too. The host side is pinned for
    CUDA, so that copies need not wait; a `Fence` says when it is free again.

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
        """The part that was filled, as a view on the device.

        A part that is one piece of memory is copied without waiting.
        """
        tensor = self._tensor[index]
        if self._tensor is not self._host:
            tensor.copy_(self._host[index], non_blocking=True)
        return tensor

    def part(self, *shape: int) -> npt.NDArray[Any]:
        """The beginning along every axis, to be filled: for CUDA one piece of memory, whatever the shape."""
        if self._tensor is self._host:
            return self.array[tuple(map(slice, shape))]
        return self.array.reshape(-1)[: prod(shape)].reshape(shape)

    def publish_part(self, *shape: int) -> torch.Tensor:
        """What was filled in as `part(*shape)`, as a view on the device."""
        if self._tensor is self._host:
            return self._tensor[tuple(map(slice, shape))]
        flat = slice(prod(shape))
        tensor = self._tensor.view(-1)[flat]
        tensor.copy_(self._host.view(-1)[flat], non_blocking=True)
        return tensor.view(shape)

    def device_part(self, *index: int | slice) -> torch.Tensor:
        """A view on the device, as it was last published."""
        return self._tensor[index]


class Fence:
    """Keeps the host from overwriting what a copy to the device still reads. Does nothing on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Returns when all that was queued before the last `record` is done; mostly at once."""
        if self._event is not None:
            self._event.synchronize()

    def record(self, stream: torch.cuda.Stream | None = None) -> None:
        """Notes the end of what is queued, on the current stream by default."""
        if self._event is not None:
            self._event.record(stream)
