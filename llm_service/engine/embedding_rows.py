"""The items whose embedding rows the engine may read, and how far they have come.

Knows keys, tensors and counts of rows that are there. Does not own the memory:
the front allocates and frees regions of the arena, this only reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

from llm_service.engine.messages import ArenaTensor

_ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


class Arena(Protocol):
    """Memory that the front writes and the engine reads."""

    def view(self, offset: int, byte_count: int, /) -> memoryview:
        """The `byte_count` bytes from `offset` on."""
        ...


@dataclass(slots=True)
class _Item:
    tensors: dict[str, ArenaTensor]
    ready_count: int = 0


class EmbeddingRows:
    """What the front has opened; a `RowSource` for the runner."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._items: dict[str, _Item] = {}

    def __contains__(self, key: object) -> bool:
        """Says whether the item is open, be its rows there or still to come."""
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)

    def open(self, key: str, tensors: list[ArenaTensor]) -> None:
        """Notes an item's place, with no row there yet."""
        assert key not in self._items, f"{key} is opened twice"
        self._items[key] = _Item({tensor.name: tensor for tensor in tensors})

    def set_ready(self, key: str, row_count: int) -> None:
        """Notes that the first `row_count` rows are there. Closed items are passed over."""
        item = self._items.get(key)
        if item is not None:
            item.ready_count = max(item.ready_count, row_count)

    def close(self, key: str) -> None:
        """Forgets an item; nothing reads it afterwards. Unknown keys are no error."""
        self._items.pop(key, None)

    def ready_count(self, key: str) -> int:
        """Leading rows that can be read, 0 for an item that is not open."""
        item = self._items.get(key)
        return item.ready_count if item is not None else 0

    def tensors(self, key: str) -> list[ArenaTensor]:
        """The tensors of an open item."""
        return list(self._items[key].tensors.values())

    def rows(self, key: str, tensor_name: str, first: int, count: int) -> memoryview:
        """Bytes of rows `first` to `first + count - 1`, all of them there, until the step ends."""
        item = self._items[key]
        assert first + count <= item.ready_count, f"rows {first}+{count} of {item.ready_count} of {key}"
        tensor = item.tensors[tensor_name]
        row_bytes = _ITEM_SIZES[tensor.data_type] * prod(tensor.shape[1:])
        return self._arena.view(tensor.offset + first * row_bytes, count * row_bytes)
