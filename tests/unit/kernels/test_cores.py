"""Services on one machine take their part of its cores while others compute, and all while they do not."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from shared.kernels.build import built_library
from shared.kernels.cores import PLACE_BYTES, PLACE_COUNT, CoreTable
from shared.kernels.library import Library, Team
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


def _sharing(
    tmp_path: Path, *, threads: int = 2, cores: int = 2, gives_way: bool = True
) -> tuple[CoreTable, Team]:
    """A team whose patience is a second, as it has gone on for long enough."""
    path = tmp_path / "table"
    path.touch()
    table = CoreTable(path)
    team = Library(built_library()).make_team(threads)
    team.share_cores(table, cores, gives_way=gives_way)
    time.sleep(1.2)
    return table, team


def _pretend_urgent(table: CoreTable, threads: int = 2, *, busy: int = 1, seconds_ago: float = -60) -> None:
    """Another that is active for a minute from now on, unless told otherwise."""
    _pretend(table, 1, busy=busy, seconds_ago=seconds_ago)
    _cell(table, 1, 3).value = threads


def _seconds(team: Team, expected: int) -> float:
    begin = time.monotonic()
    assert team.next_part() == expected
    return time.monotonic() - begin


def test_gives_way_while_another_is_urgent(tmp_path: Path) -> None:
    table, team = _sharing(tmp_path)
    _pretend(table, table.own_place, busy=1, seconds_ago=0)
    _pretend_urgent(table)
    parts: list[int] = []
    waiting = threading.Thread(target=lambda: parts.append(team.next_part()))
    waiting.start()
    time.sleep(0.2)
    assert not parts
    own = [_cell(table, table.own_place, index).value for index in (1, 2)]
    assert own == [0, 0], "nobody counts it among those that compute"
    _pretend_urgent(table, 0)
    waiting.join(1.0)
    assert parts == [1]


def test_leaves_as_many_cores_as_the_urgent_have_threads(tmp_path: Path) -> None:
    table, team = _sharing(tmp_path, threads=8, cores=8)
    for threads, left in ((1, 4), (5, 3), (7, 1)):
        _pretend_urgent(table, threads)
        assert _seconds(team, left) < 0.7
    _pretend(table, 2, busy=1, seconds_ago=-60)
    _cell(table, 2, 3).value = 3
    _pretend_urgent(table, 4)
    assert _seconds(team, 1) < 0.7, "two that are urgent together"


def test_does_not_give_way_for_ever(tmp_path: Path) -> None:
    table, team = _sharing(tmp_path)
    _pretend_urgent(table)
    assert 0.95 < _seconds(team, 1) < 1.15
    begin = time.monotonic()
    time.sleep(0.3)
    went_on = time.monotonic() - begin
    assert 0.25 < _seconds(team, 1) < 1.2 * went_on + 0.2


def test_a_program_waits_between_its_operations(tmp_path: Path) -> None:
    table, team = _sharing(tmp_path)
    source, weight = torch.randn(7, 64), torch.randn(64, 64)
    outputs = [torch.zeros(7, 64) for _ in range(3)]
    packed = pack_matrix(team, weight)
    time.sleep(1.2)
    program = Program(team, torch.float32, len(outputs))
    for before, after in zip([source, *outputs], outputs, strict=False):
        program.linear(Count(7), before, packed, after)
    _pretend_urgent(table)
    running = threading.Thread(target=program.run)
    running.start()
    time.sleep(0.2)
    assert not outputs[0].any()
    _pretend_urgent(table, 0)
    running.join(5.0)
    torch.testing.assert_close(outputs[2], source @ weight.T @ weight.T @ weight.T)


@pytest.mark.parametrize(("busy", "seconds_ago"), [(0, 0.5), (1, 5.0)], ids=["idle", "died computing"])
def test_a_mark_that_was_left_holds_nobody_up(tmp_path: Path, busy: int, seconds_ago: float) -> None:
    table, team = _sharing(tmp_path)
    _pretend_urgent(table, busy=busy, seconds_ago=seconds_ago)
    assert _seconds(team, 2) < 0.7


def test_others_than_encoders_wait_for_nobody(tmp_path: Path) -> None:
    table, team = _sharing(tmp_path, gives_way=False)
    _pretend_urgent(table)
    assert _seconds(team, 1) < 0.7


def test_a_team_marks_itself_with_its_threads(tmp_path: Path) -> None:
    table, team = _sharing(tmp_path)
    for urgent, mark in ((True, 2), (False, 0)):
        team.set_urgent(urgent)
        assert _cell(table, table.own_place, 3).value == mark


def test_a_new_holder_is_not_urgent(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.touch()
    table = CoreTable(path)
    _cell(table, 1, 3).value = 1
    assert _cell(table, CoreTable(path).own_place, 3).value == 0
