"""Workers find no main module, and nobody else is disturbed meanwhile."""

from __future__ import annotations

import inspect
import multiprocessing.spawn
import sys

from encoder_service.media.main_module import hidden_main


def test_a_process_that_starts_finds_no_main_module() -> None:
    with hidden_main():
        data = multiprocessing.spawn.get_preparation_data("worker")
    assert not {"init_main_from_name", "init_main_from_path"} & data.keys()


def test_the_main_module_is_as_before_afterwards() -> None:
    before = dict(sys.modules["__main__"].__dict__)
    with hidden_main():
        pass
    assert sys.modules["__main__"].__dict__ == before


def test_frames_can_be_inspected_meanwhile() -> None:
    """As torch does it while it is imported in another thread."""
    with hidden_main():
        inspect.modulesbyfile.clear()  # type: ignore[attr-defined]
        inspect.getmodule(sys._getframe())
