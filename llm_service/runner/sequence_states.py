"""What a model keeps of every sequence beside the KV blocks, such as the state of linear attention.

A pool with one place for each sequence that holds blocks. A sequence takes a place
at its first token and gives it back when it ends or is preempted. What a step's
layers write is kept only once the whole step has succeeded: a step that failed may
be run again, and its tokens must not be counted twice.

Knows sequences by their ids and how far their states reach. Does not know what
layers compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from llm_service.engine.batch import ScheduledSequence
from llm_service.runner.kv_cache import take_memory
from llm_service.runner.transfer import to_device
from shared.families.base import StateShape

STATES_KEYWORD = "states"
"""Forward keyword that carries the step's states to every layer."""


class SequenceStates:
    """The pool; empty for most models.

    Attributes:
        capacity: most sequences that may have a state at a time, or None where none needs any.
        byte_count: bytes of the pool, all places taken.

    Args:
        shapes: what the model keeps.
        capacity: places.
        dtype: element type of what need not be exact.
    """

    def __init__(
        self, shapes: Mapping[str, StateShape], capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.capacity = capacity if shapes else None
        self._device = device
        self._pools = {
            name: take_memory(
                (shape.layer_count, capacity, *shape.shape), torch.float32 if shape.exact else dtype, device
            )
            for name, shape in shapes.items()
        }
        self.byte_count = sum(pool.numel() * pool.element_size() for pool in self._pools.values())
        self._free = list(range(capacity))[::-1]
        self._places: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self._step: StatesOfStep | None = None

    def begin(self, items: list[ScheduledSequence], single_count: int) -> dict[str, Any]:
        """Opens the states of a step; sequences at their first token start from zeros.

        Args:
            items: in the order of the flat batch.
            single_count: items at the front that have one token.

        Returns:
            The forward keywords: nothing, where the model keeps none.
        """
        if not self._pools:
            return {}
        places = [self._place(item) for item in items]
        first = [place for place, item in zip(places, items, strict=True) if item.start == 0]
        if first:
            index = to_device(first, torch.int64, self._device)
            for pool in self._pools.values():
                pool.index_fill_(1, index, 0)
        self._step = StatesOfStep(
            self._pools,
            to_device(places, torch.int64, self._device),
            [item.count for item in items],
            single_count,
        )
        return {STATES_KEYWORD: self._step}

    def keep(self, items: list[ScheduledSequence]) -> None:
        """Keeps what the open step has written; the step has succeeded."""
        if self._step is None:
            return
        self._step.store()
        self._step = None
        for item in items:
            self._reached[item.sequence.sequence_id] = item.start + item.count

    def drop(self, sequence_ids: Iterable[int]) -> None:
        """Gives places back. Unknown ids are no error."""
        for sequence_id in sequence_ids:
            self._reached.pop(sequence_id, None)
            place = self._places.pop(sequence_id, None)
            if place is not None:
                self._free.append(place)

    def _place(self, item: ScheduledSequence) -> int:
        sequence_id = item.sequence.sequence_id
        if item.start == 0:
            if sequence_id not in self._places:
                self._places[sequence_id] = self._free.pop()
            self._reached[sequence_id] = 0
        reached = self._reached.get(sequence_id)
        assert reached == item.start, f"the state of {sequence_id} reaches {reached}, not {item.start}"
        return self._places[sequence_id]


class StatesOfStep:
    """See `StepStates`."""

    def __init__(
        self, pools: Mapping[str, torch.Tensor], places: torch.Tensor, counts: list[int], single_count: int
    ) -> None:
        self.counts = counts
        self.single_count = single_count
        self._pools = pools
        self._places = places
        self._written: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def read(self, name: str, layer: int, sequences: slice) -> torch.Tensor:
        """See `StepStates`."""
        return self._pools[name][layer].index_select(0, self._places[sequences])

    def write(self, name: str, layer: int, sequences: slice, values: torch.Tensor) -> None:
        """See `StepStates`."""
        self._written.append((self._pools[name][layer], self._places[sequences], values))

    def store(self) -> None:
        """Moves all that was written into the pools."""
        for pool, places, values in self._written:
            pool.index_copy_(0, places, values.to(pool.dtype))
