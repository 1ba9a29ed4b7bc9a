"""Embedding rows of media into a step's input embeddings.

Knows which rows a chunk overlaps, and how they reach the device. Does not know
where the rows came from or who frees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from llm_service.engine.batch import RowSource, ScheduledSequence
from llm_service.engine.messages import ArenaTensor
from llm_service.runner.static_buffer import Fence
from shared.families.base import MAIN_TENSOR, RawTensor
from shared.torch_tensors import TORCH_TYPES, from_raw

WIDEST_BYTES = 4
"""Bytes of the widest element that rows may have."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Rows of one item for consecutive flat rows of a step.

    Attributes:
        target: the flat rows.
        data: the rows' bytes, valid until the step ends.
        data_type: name of their element type.
    """

    target: slice
    data: memoryview
    data_type: str


class RowPlacer:
    """Overwrites the placeholder rows of steps.

    On CUDA the rows go through pinned memory and a stream of their own, piece
    by piece: while one is on its way, the next is read from the arena, and the
    host does not wait for any.

    Args:
        max_rows: most rows of a step.
        width: elements of a row.
        tensor: which of an item's tensors has the rows.
    """

    def __init__(self, max_rows: int, width: int, device: torch.device, tensor: str = MAIN_TENSOR) -> None:
        self._tensor = tensor
        self._device = device
        self._fence = Fence(device)
        self._byte_count = max_rows * width * WIDEST_BYTES
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._staging: tuple[torch.Tensor, torch.Tensor] | None = None

    def place(
        self, inputs_embeds: torch.Tensor, items: list[ScheduledSequence], rows: list[int], source: RowSource
    ) -> bool:
        """Overwrites the placeholder rows of a step's (tokens, hidden) input embeddings.

        Args:
            items: what the step computes.
            rows: first flat row of each item.
            source: embedding rows; those that the items need are there. Converted
                to the type of `inputs_embeds`.

        Returns:
            Whether there were any.
        """
        placements = list(_placements(items, rows, source, self._tensor))
        if not placements:
            return False
        if self._stream is None:
            for placement in placements:
                _fill(inputs_embeds[placement.target], placement)
        else:
            self._copy(inputs_embeds, placements, self._stream)
        return True

    def _copy(
        self, inputs_embeds: torch.Tensor, placements: list[Placement], stream: torch.cuda.Stream
    ) -> None:
        """Through pinned memory, on a stream beside the current one."""
        current = torch.cuda.current_stream(self._device)
        # The pinned side may still be read by the last step's copies, the device side by its layers.
        self._fence.wait()
        stream.wait_stream(current)
        pinned, staged = self._memory()
        host = pinned.numpy()
        parts, first = [], 0
        for placement in placements:
            part = slice(first, first + placement.data.nbytes)
            host[part] = np.frombuffer(placement.data, np.uint8)
            with torch.cuda.stream(stream):
                staged[part].copy_(pinned[part], non_blocking=True)
            parts.append(part)
            # The next row begins where any element type may.
            first = -(-part.stop // WIDEST_BYTES) * WIDEST_BYTES
        self._fence.record(stream)
        current.wait_stream(stream)
        for placement, part in zip(placements, parts, strict=True):
            target = inputs_embeds[placement.target]
            target.copy_(staged[part].view(TORCH_TYPES[placement.data_type]).view(target.shape))

    def _memory(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The pinned bytes and their twin on the device: taken at the first picture."""
        if self._staging is None:
            pinned = torch.empty(self._byte_count, dtype=torch.uint8, pin_memory=True)
            self._staging = pinned, torch.empty(self._byte_count, dtype=torch.uint8, device=self._device)
        return self._staging


def _fill(target: torch.Tensor, placement: Placement) -> None:
    """Copies on the host, converting to the target's type."""
    target.copy_(from_raw(RawTensor(placement.data_type, tuple(target.shape), placement.data)))


def _placements(
    items: list[ScheduledSequence], rows: list[int], source: RowSource, tensor_name: str
) -> Iterator[Placement]:
    """What of which item goes where."""
    for row, item in zip(rows, items, strict=True):
        if item.start >= item.sequence.prompt_length:
            continue
        end = item.start + item.count
        for span in item.sequence.spans:
            first, last = max(span.start, item.start), min(span.start + span.length, end)
            if first < last:
                tensor = _tensor(source, span.key, tensor_name)
                data = source.rows(span.key, tensor.name, span.first_row + first - span.start, last - first)
                target = slice(row + first - item.start, row + last - item.start)
                yield Placement(target, data, tensor.data_type)


def _tensor(source: RowSource, key: str, name: str) -> ArenaTensor:
    for tensor in source.tensors(key):
        if tensor.name == name:
            return tensor
    raise AssertionError(f"no tensor {name!r} among those of {key}")
