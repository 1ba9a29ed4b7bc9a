"""Layouts of items that were announced once: a repeated picture needs no upload to be laid out.

Knows keys and layouts, the most recently used ones. Does not know rows.
"""

from __future__ import annotations

from collections import OrderedDict

from shared.families.base import MediaInfo

MAX_LAYOUT_COUNT = 65536
"""Layouts that are remembered, some 20 MiB of those that are of pictures."""

MAX_PLACE_COUNT = 1 << 20
"""Grids and times in all of them, some 32 MiB. A video has up to thousands, and a caller
may send ever new ones."""


class RememberedLayouts:
    """A bounded memory of layouts."""

    def __init__(self) -> None:
        self._layouts: OrderedDict[str, MediaInfo] = OrderedDict()
        self._place_count = 0

    def get(self, key: str) -> MediaInfo | None:
        """The item's layout, where it was ever announced and not forgotten."""
        info = self._layouts.get(key)
        if info is not None:
            self._layouts.move_to_end(key)
        return info

    def forget(self, key: str) -> None:
        """Drops a layout that proved untrue; an unknown key is no error."""
        info = self._layouts.pop(key, None)
        if info is not None:
            self._place_count -= _place_count(info)

    def remember(self, key: str, info: MediaInfo) -> None:
        """Notes a layout; those that were used longest ago may go for it."""
        self.forget(key)
        self._layouts[key] = info
        self._place_count += _place_count(info)
        while len(self._layouts) > MAX_LAYOUT_COUNT or self._place_count > MAX_PLACE_COUNT:
            self.forget(next(iter(self._layouts)))


def _place_count(info: MediaInfo) -> int:
    return len(info.grids) + len(info.timestamps)
