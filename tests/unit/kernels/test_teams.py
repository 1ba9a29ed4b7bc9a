"""Threads take turns at operations, end when they are dropped, and get in nobody's way."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from shared.kernels.library import Team
from shared.kernels.program import Count, PackedMatrix, Program, pack_matrix
from tests.unit.kernels.conftest import library

WIDTH, LAYERS, ROWS = 64, 12, 9


class Chain:
    """Layers that each read what the one before has written: a thread that runs ahead shows."""

    def __init__(self, team: Team) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weights = [torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5 for _ in range(LAYERS)]
        self.source = torch.randn(ROWS, WIDTH, generator=generator)
        self.rows = [self.source, *(torch.empty(ROWS, WIDTH) for _ in range(LAYERS))]
        self.count = Count(ROWS)
        self.program = Program(team, torch.float32, LAYERS)
        for index, weight in enumerate(self.weights):
            packed: PackedMatrix = pack_matrix(team, weight)
            self.program.linear(self.count, self.rows[index], packed, self.rows[index + 1])

    def run(self) -> torch.Tensor:
        for rows in self.rows[1:]:
            rows.fill_(float("nan"))
        self.program.run()
        return self.rows[-1].clone()

    def expected(self) -> torch.Tensor:
        rows = self.source
        for weight in self.weights:
            rows = rows @ weight.T
        return rows


@pytest.mark.parametrize("threads", [1, 2, 4, 7])
def test_many_runs_in_a_row_are_alike(threads: int) -> None:
    """Barriers hold also where there are more threads than cores."""
    chain = Chain(library("native").make_team(threads))
    first = chain.run()
    torch.testing.assert_close(first, chain.expected(), atol=1e-4, rtol=1e-4)
    for _ in range(400 if threads <= 2 else 60):
        assert torch.equal(chain.run(), first)


def test_pauses_between_runs_do_no_harm() -> None:
    """Threads that have gone to sleep wake up."""
    chain = Chain(library("native").make_team(2))
    first = chain.run()
    for pause in (0.0, 0.001, 0.01, 0.05) * 5:
        time.sleep(pause)
        assert torch.equal(chain.run(), first)


def test_two_teams_at_once() -> None:
    def run(_: int) -> None:
        chain = Chain(library("native").make_team(2))
        first = chain.run()
        torch.testing.assert_close(first, chain.expected(), atol=1e-4, rtol=1e-4)
        for _ in range(100):
            assert torch.equal(chain.run(), first)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))


def test_callers_of_one_team_take_turns() -> None:
    team = library("native").make_team(2)
    chains = [Chain(team) for _ in range(3)]

    def run(chain: Chain) -> None:
        for _ in range(100):
            torch.testing.assert_close(chain.run(), chain.expected(), atol=1e-4, rtol=1e-4)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, chains))


def test_python_goes_on_during_a_run() -> None:
    """The interpreter's lock is free: another thread counts while a long program computes."""
    team = library("native").make_team(1)
    weight = pack_matrix(team, torch.randn(1024, 1024))
    rows, output = torch.randn(512, 1024), torch.empty(512, 1024)
    program = Program(team, torch.float32, 20)
    for _ in range(20):
        program.linear(Count(512), rows, weight, output)
    counted, done = 0, threading.Event()

    def compute() -> None:
        program.run()
        done.set()

    thread = threading.Thread(target=compute)
    thread.start()
    while not done.is_set():
        counted += 1
        time.sleep(0)
    thread.join()
    assert counted > 1


def thread_count() -> int:
    return psutil.Process().num_threads()


@pytest.mark.parametrize("used", [True, False])
def test_a_dropped_team_takes_its_threads_along(used: bool) -> None:
    gc.collect()  # teams of earlier tests
    before = thread_count()
    team = library("native").make_team(5)
    assert thread_count() == before + 4
    if used:
        Chain(team).run()
    del team
    gc.collect()
    deadline = time.monotonic() + 10  # the system takes a moment to forget a thread that has ended
    while thread_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread_count() == before


def test_a_program_keeps_its_team() -> None:
    chain = Chain(library("native").make_team(2))
    gc.collect()
    torch.testing.assert_close(chain.run(), chain.expected(), atol=1e-4, rtol=1e-4)
