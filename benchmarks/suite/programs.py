"""Percept's own measurements, which need no peer: each a program that writes JSON.

Knows which there are and how they are called. Does not know what they measure.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from benchmarks.peers.peer import Place
from benchmarks.peers.process_tree import ProcessTree

PROGRAM_SECONDS = 600.0
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Program:
    """A module with a command line.

    Attributes:
        name: under which its figures are kept.
        module: what to run.
        takes_model: it has `--model`, and is given the suite's checkpoint.
        arguments: further ones.
        quick_arguments: the same in a quick run.
    """

    name: str
    module: str
    takes_model: bool
    arguments: tuple[str, ...]
    quick_arguments: tuple[str, ...]


PROGRAMS = (
    Program("start_time", "benchmarks.suite.start_time", False, ("--repeats=3",), ("--repeats=1",)),
    Program("transfer", "benchmarks.transfer", False, ("--repeats=20",), ("--repeats=8",)),
    Program("engine_cost", "benchmarks.engine_cost", False, ("--repeats=200",), ("--repeats=100",)),
    Program("overhead", "benchmarks.overhead", False, ("--repeats=150",), ("--repeats=80",)),
    Program("repeats", "benchmarks.repeats", True, ("--repeats=12",), ("--repeats=5",)),
    Program("overlap", "benchmarks.overlap", True, ("--repeats=7",), ("--repeats=3",)),
)
LIMITS = Program("limits", "benchmarks.limits", False, ("--seconds=2",), ("--seconds=1",))


class ProgramError(Exception):
    """A program gave no figures; the text says why."""


def run_program(program: Program, place: Place, *, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs a program to its end and returns its figures.

    Raises:
        ProgramError: it is not there, failed, or took too long.
    """
    if find_spec(program.module) is None:
        raise ProgramError(f"{program.module} is not there")
    file = place.logs / f"{program.name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", program.module, "--json", str(file)]
    command += program.quick_arguments if quick else program.arguments
    if program.takes_model:
        command += ["--model", str(place.checkpoint)]
    with ProcessTree(command, place.logs / f"{program.name}.log", cores=place.cores) as tree:
        _wait(program, tree, say)
        if tree.exit_code != 0 or not file.is_file():
            raise ProgramError(f"{program.module} ended with code {tree.exit_code}:\n{tree.tail()}")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _wait(program: Program, tree: ProcessTree, say: Callable[[str], None]) -> None:
    started, said = time.monotonic(), ""
    while tree.exit_code is None:
        if time.monotonic() - started > PROGRAM_SECONDS:
            raise ProgramError(f"{program.module} took longer than {PROGRAM_SECONDS:.0f} s:\n{tree.tail()}")
        time.sleep(POLL_SECONDS)
        last = tree.tail(1)
        if last != said and last.startswith(program.name):
            said = last
            say(f"  {last}")
