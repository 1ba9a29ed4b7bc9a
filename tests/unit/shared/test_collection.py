"""What is loaded is not walked through again."""

from __future__ import annotations

import gc

from shared.collection import keep_loaded


def test_what_is_there_is_kept_and_what_comes_later_is_collected() -> None:
    before = gc.get_freeze_count()
    try:
        keep_loaded()
        assert gc.get_freeze_count() > before + 1000
        later: list[object] = []
        later.append(later)
        del later
        assert gc.collect() >= 1
    finally:
        gc.unfreeze()
