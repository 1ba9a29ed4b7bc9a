"""The compiled kernels, loaded: teams of threads that run programs.

Knows the library's functions. Does not know how it was compiled nor what a
program computes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import finalize

from shared.kernels.cores import PLACE_COUNT, CoreTable
from shared.kernels.operation import AttentionPlan, Operation


class Library:
    """One loaded library.

    Raises:
        OSError: it cannot be loaded, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._declare("percept_make_team", [ctypes.c_int], pointer)
        self._declare("percept_drop_team", [pointer], None)
        self._declare("percept_share_cores", [pointer, pointer, *[ctypes.c_int] * 3], None)
        self._declare("percept_next_part", [pointer], ctypes.c_int)
        self._declare("percept_run", [pointer, ctypes.POINTER(Operation), count], None)
        for struct, name in ((Operation, "operation"), (AttentionPlan, "attention")):
            size = self._declare(f"percept_{name}_size", [], count)()
            if size != ctypes.sizeof(struct):
                raise OSError(f"{path}: {name} has {size} bytes there and {ctypes.sizeof(struct)} here")

    def make_team(self, threads: int) -> Team:
        """Starts `threads` - 1 threads; the caller of a program is the last.

        Raises:
            OSError: the system gives no more threads.
        """
        return Team(self._library, threads)

    def _declare(self, name: str, arguments: list[Any], result: type | None) -> Callable[..., Any]:
        function = getattr(self._library, name, None)
        if function is None:
            raise OSError(f"the library has no {name}")
        function.argtypes, function.restype = arguments, result
        declared: Callable[..., Any] = function
        return declared


class Team:
    """Threads that run one program at a time, all of them on every operation.

    Attributes:
        size: number of threads, the caller's included.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self.size = threads
        self._team = library.percept_make_team(threads)
        if not self._team:
            raise OSError(f"the system gives no {threads} threads")
        self._run = library.percept_run
        self._share = library.percept_share_cores
        self._next_part = library.percept_next_part
        # At the end of the process its threads end anyway, and one may still be computing.
        finalize(self, library.percept_drop_team, self._team).atexit = False

    def share_cores(self, table: CoreTable, core_count: int) -> None:
        """Takes only its part of the cores while other teams of a table compute.

        Args:
            core_count: cores that all of them have together.
        """
        self._table = table  # mapped as long as the team is there
        self._share(self._team, table.address, PLACE_COUNT, table.own_place, core_count)

    def next_part(self) -> int:
        """Threads that a program would get now."""
        part: int = self._next_part(self._team)
        return part

    def run(self, operations: ctypes.Array[Operation], count: int) -> None:
        """Runs operations one after the other and waits; other Python threads go on meanwhile."""
        self._run(self._team, operations, count)
