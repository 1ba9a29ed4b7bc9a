"""Embeddings that were made before, within a budget of bytes.

Knows keys and sizes. Identity is content, so an entry can never be stale.
"""

from __future__ import annotations

from collections import OrderedDict

from shared.families.base import EncodedItem


class EmbeddingCache:
    """Least recently used first out.

    Args:
        max_byte_count: budget; 0 keeps nothing.
    """

    def __init__(self, max_byte_count: int) -> None:
        self.max_byte_count = max_byte_count
        self.byte_count = 0
        self.hit_count = 0
        self.miss_count = 0
        self._items: OrderedDict[str, EncodedItem] = OrderedDict()

    def get(self, key: str) -> EncodedItem | None:
        """Looks an item up, and counts the look-up."""
        item = self.peek(key)
        if item is None:
            self.miss_count += 1
        else:
            self.hit_count += 1
        return item

    def peek(self, key: str) -> EncodedItem | None:
        """Looks an item up a second time for the same caller: not counted."""
        item = self._items.get(key)
        if item is not None:
            self._items.move_to_end(key)
        return item

    def put(self, key: str, item: EncodedItem) -> None:
        """Keeps an item, in place of the longest unused; one above the budget is not kept."""
        size = item_byte_count(item)
        if size > self.max_byte_count or key in self._items:
            return
        self._items[key] = item
        self.byte_count += size
        while self.byte_count > self.max_byte_count:
            _, oldest = self._items.popitem(last=False)
            self.byte_count -= item_byte_count(oldest)


def item_byte_count(item: EncodedItem) -> int:
    """Bytes of an item's tensors."""
    return sum(memoryview(tensor.data).nbytes for tensor in item.tensors.values())
