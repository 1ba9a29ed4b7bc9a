"""Defaults fit together; without matplotlib all works but plots, and what to install is said."""

from __future__ import annotations

import sys

import pytest

from percept.bench import BenchError
from percept.bench.plots import check_plots_possible
from percept.commands.bench_options import ServeOptions


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    check_plots_possible()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BenchError, match=r"pip install 'percept\[bench\]'"):
        check_plots_possible()


def test_no_flag_at_all_makes_a_run() -> None:
    """Target, workload and load of the defaults fit together, and prompts are new each time."""
    options = ServeOptions()
    load = options.to_load()
    assert (load.concurrency, load.rate, load.requests) == (8, None, 100)
    assert options.to_target().chat_url == "http://127.0.0.1:8000/v1/chat/completions"
    assert options.to_workload().kind(0) == "text"
    assert options.seed != ServeOptions().seed
