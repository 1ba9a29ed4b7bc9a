"""`python -m shared.kernels.check LIBRARY`: does a compiled library compute small cases rightly?

Runs in a process of its own, so that a library that crashes takes nothing
along. Knows the expected numbers by computing them in plain Python.
"""

from __future__ import annotations

import array
import ctypes
import math
import sys
from pathlib import Path
from typing import TypeAlias

from shared.kernels.library import Library, Team
from shared.kernels.operation import Activation, AttentionPlan, DataType, Kind, Operation

ROWS, COLUMNS, DEPTH = 35, 40, 34
"""Rows enough for tile registers, where there are any."""
PANEL_COUNT, PANEL = 2, 32
KEYS, WIDTH = 19, 20
EXACT = 1e-5
ROUNDED = 2e-2
"""Attention rounds its weights and its output in bfloat16."""

Elements: TypeAlias = "array.array[int] | array.array[float]"


def main() -> None:
    """Exits with 1 and a reason when the library is wrong."""
    try:
        team = Library(Path(sys.argv[1])).make_team(2)
    except OSError as error:
        sys.exit(str(error))
    for name in ("float32", "bfloat16"):
        _compare(f"{name}: a linear layer", _multiply(team, name), _products(), EXACT)
        close = EXACT if name == "float32" else ROUNDED
        _compare(f"{name}: attention", _attend(team, name), _attended(), close)


def _compare(what: str, got: list[float], wanted: list[float], tolerance: float) -> None:
    worst = max(abs(a - b) for a, b in zip(got, wanted, strict=True))
    if not worst <= tolerance:  # also where it is no number
        sys.exit(f"{what} is off by {worst}")


def _weight(column: int, unit: int) -> float:
    """Small whole numbers, which both element types hold exactly."""
    return float((3 * column + 5 * unit) % 7 - 3)


def _input(row: int, unit: int) -> float:
    return float((2 * row + unit) % 5 - 2)


def _sum(row: int, column: int) -> float:
    return sum(_input(row, unit) * _weight(column, unit) for unit in range(DEPTH))


def _products() -> list[float]:
    """Sums through SiLU."""
    sums = [_sum(row, column) for row in range(ROWS) for column in range(COLUMNS)]
    return [value / (1 + math.exp(-value)) for value in sums]


def _attended() -> list[float]:
    """Rows 0 to `KEYS` - 1 of (query, key, value), each attending to itself and to those before it."""
    result: list[float] = []
    for row in range(KEYS):
        seen = range(row + 1)
        scores = [sum(_input(row, c) * _weight(key, c) for c in range(WIDTH)) / WIDTH for key in seen]
        weights = [math.exp(score) for score in scores]
        for c in range(WIDTH):
            result.append(
                sum(w * _input(key + 3, c) for w, key in zip(weights, seen, strict=True)) / sum(weights)
            )
    return result


def _elements(name: str, values: list[float]) -> Elements:
    """bfloat16 is the upper half of float32."""
    words = array.array("I", array.array("f", values).tobytes())
    return words if name == "float32" else array.array("H", [word >> 16 for word in words])


def _numbers(name: str, elements: Elements) -> list[float]:
    if name == "float32":
        return array.array("f", elements.tobytes()).tolist()
    return array.array("f", array.array("I", [int(word) << 16 for word in elements]).tobytes()).tolist()


def _multiply(team: Team, name: str) -> list[float]:
    weight = _elements(name, [_weight(column, unit) for column in range(COLUMNS) for unit in range(DEPTH)])
    rows = _elements(name, [_input(row, unit) for row in range(ROWS) for unit in range(DEPTH)])
    panels = array.array("I", bytes(4 * PANEL_COUNT * PANEL * DEPTH))
    output = array.array("f", bytes(4 * ROWS * COLUMNS))
    count = ctypes.c_int64(ROWS)
    sizes = {"data_type": DataType[name.upper()], "columns": COLUMNS, "depth": DEPTH}
    pack = Operation(kind=Kind.PACK, weight=_address(weight), output=_address(panels), **sizes)
    linear = Operation(
        kind=Kind.LINEAR,
        rows=ctypes.addressof(count),
        input=_address(rows),
        input_stride=DEPTH,
        output=_address(output),
        output_stride=COLUMNS,
        weight=_address(panels),
        activation=Activation.SILU,
        wide=1,
        **sizes,
    )
    team.run((Operation * 2)(pack, linear), 2)
    return output.tolist()


def _attend(team: Team, name: str) -> list[float]:
    query = _elements(name, [_input(row, c) for row in range(KEYS) for c in range(WIDTH)])
    key = _elements(name, [_weight(row, c) for row in range(KEYS) for c in range(WIDTH)])
    value = _elements(name, [_input(row + 3, c) for row in range(KEYS) for c in range(WIDTH)])
    output = _elements(name, [0.0] * (KEYS * WIDTH))
    starts, count = array.array("i", [0, KEYS]), ctypes.c_int64(1)
    plan = AttentionPlan(
        query=_address(query),
        key=_address(key),
        value=_address(value),
        output=_address(output),
        starts=_address(starts),
        heads=1,
        key_heads=1,
        width=WIDTH,
        query_stride=WIDTH,
        key_stride=WIDTH,
        output_stride=WIDTH,
        causal=1,
        scale=1 / WIDTH,
    )
    operation = Operation(
        kind=Kind.ATTENTION,
        data_type=DataType[name.upper()],
        attention=ctypes.pointer(plan),
        sequences=ctypes.addressof(count),
    )
    team.run((Operation * 1)(operation), 1)
    return _numbers(name, output)


def _address(elements: Elements) -> int:
    return elements.buffer_info()[0]


if __name__ == "__main__":
    main()
