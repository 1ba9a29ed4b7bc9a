"""Services on one machine take their part of its cores while others compute, and all while they do not."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch

from shared.kernels.build import built_library
from shared.kernels.cores import PLACE_BYTES, PLACE_COUNT, CoreTable
from shared.kernels.library import Library
from shared.kernels.program import Count, Program, pack_matrix


def _cell(table: CoreTable, place: int, index: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(table.address + place * PLACE_BYTES + 8 * index)


def _pretend(table: CoreTable, place: int, *, busy: int, seconds_ago: float) -> None:
    _cell(table, place, 0).value = os.getpid()
    _cell(table, place, 1).value = busy
    _cell(table, place, 2).value = time.monotonic_ns() - int(seconds_ago * 1e9)


def test_each_takes_a_place_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.touch()
    assert [CoreTable(path).own_place for _ in range(3)] == [0, 1, 2]


def test_the_place_of_a_process_that_has_ended_is_free(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.touch()
    table = CoreTable(path)
    ended = subprocess.Popen(["true"])
    ended.wait()
    _cell(table, 1, 0).value = ended.pid
    assert CoreTable(path).own_place == 1


def test_a_full_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.touch()
    tables = [CoreTable(path) for _ in range(PLACE_COUNT)]
    with pytest.raises(OSError, match="all 64 places are taken"):
        CoreTable(path)
    assert len({table.own_place for table in tables}) == PLACE_COUNT


@pytest.mark.parametrize(
    ("busy", "seconds_ago", "threads"),
    [(1, 0.0, 1), (1, 5.0, 2), (0, 0.0, 1), (0, 0.5, 2)],
    ids=["computes", "died computing", "between two steps", "idle"],
)
def test_threads_that_take_part(tmp_path: Path, busy: int, seconds_ago: float, threads: int) -> None:
    """Two cores for two teams: how many threads of ours run while the other does something."""
    path = tmp_path / "table"
    path.touch()
    table = CoreTable(path)
    team = Library(built_library()).make_team(2)
    team.share_cores(table, 2)
    _pretend(table, 1, busy=busy, seconds_ago=seconds_ago)
    assert team.next_part() == threads


def test_results_are_the_same_however_many_take_part(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.touch()
    table = CoreTable(path)
    team = Library(built_library()).make_team(3)
    team.share_cores(table, 3)
    source, weight, output = torch.randn(7, 64), torch.randn(96, 64), torch.empty(7, 96)
    program = Program(team, torch.float32, 1)
    program.linear(Count(7), source, pack_matrix(team, weight), output)
    for step in range(300):
        _pretend(table, 1, busy=step % 2, seconds_ago=0.0 if step % 3 else 60.0)
        output.zero_()
        program.run()
        torch.testing.assert_close(output, source @ weight.T)
