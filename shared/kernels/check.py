"""`python -m shared.kernels.check LIBRARY`: does a compiled library compute a small case rightly?

Runs in a process of its own, so that a library that crashes takes nothing
along. Knows the expected numbers by computing them in plain Python.
"""

from __future__ import annotations

import array
import ctypes
import sys
from pathlib import Path

from shared.kernels.library import Library
from shared.kernels.operation import DataType, Kind, Operation

ROWS, COLUMNS, DEPTH = 13, 40, 34
PANEL_COUNT = 2
TOLERANCE = 1e-5


def main() -> None:
    """Exits with 1 and a reason when the library is wrong."""
    team = Library(Path(sys.argv[1])).make_team(2)
    for name in ("float32", "bfloat16"):
        got, wanted = _multiply(team, name), _expected()
        worst = max(abs(a - b) for a, b in zip(got, wanted, strict=True))
        if worst > TOLERANCE:
            sys.exit(f"{name}: a linear layer is off by {worst}")


def _weight(column: int, unit: int) -> float:
    """Small whole numbers, which both element types hold exactly."""
    return float((3 * column + 5 * unit) % 7 - 3)


def _input(row: int, unit: int) -> float:
    return float((2 * row + unit) % 5 - 2)


def _expected() -> list[float]:
    return [
        sum(_input(row, unit) * _weight(column, unit) for unit in range(DEPTH))
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]


def _elements(name: str, values: list[float]) -> array.array[int]:
    """Little-endian elements; bfloat16 is the upper half of float32."""
    words = array.array("I", array.array("f", values).tobytes())
    return words if name == "float32" else array.array("H", [word >> 16 for word in words])


def _multiply(team: object, name: str) -> list[float]:
    from shared.kernels.library import Team

    assert isinstance(team, Team)
    weight = _elements(name, [_weight(column, unit) for column in range(COLUMNS) for unit in range(DEPTH)])
    rows = _elements(name, [_input(row, unit) for row in range(ROWS) for unit in range(DEPTH)])
    panels = array.array("I", bytes(4 * PANEL_COUNT * 32 * DEPTH))
    output = array.array("f", bytes(4 * ROWS * COLUMNS))
    count = ctypes.c_int64(ROWS)
    data_type = DataType[name.upper()]
    operations = (Operation * 2)(
        Operation(
            kind=Kind.PACK,
            data_type=data_type,
            columns=COLUMNS,
            depth=DEPTH,
            weight=weight.buffer_info()[0],
            output=panels.buffer_info()[0],
        ),
        Operation(
            kind=Kind.LINEAR,
            data_type=data_type,
            rows=ctypes.addressof(count),
            input=rows.buffer_info()[0],
            input_stride=DEPTH,
            output=output.buffer_info()[0],
            output_stride=COLUMNS,
            columns=COLUMNS,
            depth=DEPTH,
            weight=panels.buffer_info()[0],
            wide=1,
        ),
    )
    team.run(operations, len(operations))
    return output.tolist()


if __name__ == "__main__":
    main()
