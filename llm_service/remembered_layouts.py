"""Layouts of items that were announced once: a repeated picture needs no upload to be laid out.

Knows keys and layouts, the most recently used ones. Does not know rows.
"""

from __future__ import annotations

from collections import OrderedDict

from shared.families.base import MediaInfo

MAX_LAYOUT_COUNT = 65536
"""Layouts that are remembered, some 20 MiB of them."""


class RememberedLayouts:
    """A bounded memory of layouts."""

    def __init__(self) -> None:
        self._layouts: OrderedDict[str, MediaInfo] = OrderedDict()

    def get(self, key: str) -> MediaInfo | None:
        """The item's layout, where it was ever announced and not forgotten."""
        info = self._layouts.get(key)
        if info is not None:
            self._layouts.move_to_end(key)
        return info

    def forget(self, key: str) -> None:
        """Drops a layout that proved untrue; an unknown key is no error."""
        self._layouts.pop(key, None)

    def remember(self, key: str, info: MediaInfo) -> None:
        """Notes a layout; the one that was used longest ago may go for it."""
        self._layouts[key] = info
        self._layouts.move_to_end(key)
        if len(self._layouts) > MAX_LAYOUT_COUNT:
            self._layouts.popitem(last=False)
