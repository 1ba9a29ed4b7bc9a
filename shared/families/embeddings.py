"""Checks on precomputed embeddings that every family shares.

Knows ranks, types, sizes and finiteness. Does not know how many rows a picture
has: that is the family's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from shared.errors import BadEmbeddingsError
from shared.families.base import Grid, RawTensor

FLOAT_TYPES = ("float32", "float16", "bfloat16")
MAX_GRID_SIDE = 1 << 15
"""Largest side of a grid in patches; any product of three fits 64 bits."""

MAX_TIMES = 4096
"""Most times of one item."""

MAX_GRIDS = 64
"""Most pictures in one item."""

MAX_SECONDS = 65536
"""Longest time between two groups of a video's frames, and latest time of one."""

_GRID_SIDES = 3
_BFLOAT16_MAGNITUDE = 0x7FFF
_BFLOAT16_65536 = 0x4780
_FLOAT16_LIMIT = 65504.0


def check_fields(
    fields: Mapping[str, RawTensor], required: Collection[str], optional: Collection[str]
) -> None:
    """Raises BadEmbeddingsError for a missing or an unknown field."""
    for name in sorted(required):
        if name not in fields:
            raise BadEmbeddingsError(f"the field {name} is missing", param=name)
    for name in sorted(fields):
        if name not in required and name not in optional:
            known = ", ".join(sorted([*required, *optional]))
            raise BadEmbeddingsError(f"unknown field {name!r}; this model takes {known}", param=name)


def check_rows(name: str, tensor: RawTensor, hidden_size: int) -> int:
    """Returns the rows of an embedding tensor (rows, hidden).

    Raises:
        BadEmbeddingsError: wrong type, rank or hidden size, no rows, or a value
            that is not finite.
    """
    if tensor.data_type not in FLOAT_TYPES:
        raise BadEmbeddingsError(
            f"{name} holds {tensor.data_type}; embeddings are {', '.join(FLOAT_TYPES)}", param=name
        )
    if len(tensor.shape) != 2:
        raise BadEmbeddingsError(
            f"{name} has the shape {list(tensor.shape)}; it needs two dimensions, rows and hidden", param=name
        )
    rows, width = tensor.shape
    if width != hidden_size:
        raise BadEmbeddingsError(f"{name} is {width} wide; this model takes {hidden_size}", param=name)
    if rows < 1:
        raise BadEmbeddingsError(f"{name} has no rows", param=name)
    if not fits_float16(tensor):
        raise BadEmbeddingsError(
            f"{name} holds values that are not finite, or beyond {_FLOAT16_LIMIT:g}", param=name
        )
    return rows


def split_columns(tensor: RawTensor, width: int) -> list[RawTensor]:
    """Cuts (rows, n x width) into n tensors (rows, width)."""
    rows, columns = tensor.shape
    element = len(tensor.data) // (rows * columns) if rows else 0
    data = np.frombuffer(tensor.data, np.uint8).reshape(rows, columns * element)
    edges = range(0, columns, width)
    return [
        RawTensor(
            tensor.data_type, (rows, width), data[:, first * element : (first + width) * element].tobytes()
        )
        for first in edges
    ]


def fits_float16(tensor: RawTensor) -> bool:
    """Says whether all values stay finite in every type that a model may be served in.

    float16 has the smallest range of them, and no embedding comes near its end.
    """
    if tensor.data_type == "bfloat16":
        bits = np.frombuffer(tensor.data, dtype="<u2")
        return not bool(((bits & _BFLOAT16_MAGNITUDE) >= _BFLOAT16_65536).any())
    kind = {"float32": "<f4", "float16": "<f2"}[tensor.data_type]
    return bool((np.abs(np.frombuffer(tensor.data, dtype=kind)) <= _FLOAT16_LIMIT).all())


def read_integers(name: str, tensor: RawTensor) -> npt.NDArray[np.int64]:
    """Returns an int64 tensor as an array of its shape.

    Raises:
        BadEmbeddingsError: another element type.
    """
    if tensor.data_type != "int64":
        raise BadEmbeddingsError(f"{name} holds {tensor.data_type}; it needs integers", param=name)
    return np.frombuffer(tensor.data, dtype="<i8").reshape(tensor.shape).astype(np.int64)


def read_one_number(name: str, tensor: RawTensor, most: int) -> float:
    """Reads a number above 0, written once or up to `most` times.

    Raises:
        BadEmbeddingsError: several numbers that differ, too many, none, or one out of bounds.
    """
    kind = {"float32": "<f4", "float16": "<f2", "int64": "<i8"}.get(tensor.data_type)
    if kind is None:
        raise BadEmbeddingsError(f"{name} holds {tensor.data_type}; it needs float32", param=name)
    values = np.frombuffer(tensor.data, dtype=kind).astype(np.float64)
    if len(tensor.shape) > 1 or len(values) not in (1, most):
        raise BadEmbeddingsError(f"{name} needs 1 or {most} numbers", param=name)
    if not (values == values[0]).all():
        raise BadEmbeddingsError(
            f"{name} differs between videos: send them as items of their own", param=name
        )
    if not 0 < values[0] <= MAX_SECONDS:
        raise BadEmbeddingsError(f"{name} lies above 0 and up to {MAX_SECONDS}", param=name)
    return float(values[0])


def read_seconds(name: str, tensor: RawTensor) -> tuple[float, ...]:
    """Reads times in seconds, one or more: floats or whole numbers, (n,).

    Raises:
        BadEmbeddingsError: another shape or type, too many, or a time out of bounds.
    """
    kinds = {"float32": "<f4", "float16": "<f2", "int64": "<i8"}
    if tensor.data_type not in kinds or len(tensor.shape) != 1 or not 1 <= tensor.shape[0] <= MAX_TIMES:
        raise BadEmbeddingsError(
            f"{name} is up to {MAX_TIMES} times in seconds, of one dimension", param=name
        )
    values = np.frombuffer(tensor.data, dtype=kinds[tensor.data_type]).astype(np.float64)
    if not bool(((values >= 0) & (values <= MAX_SECONDS)).all()):
        raise BadEmbeddingsError(f"times in {name} lie between 0 and {MAX_SECONDS:g}", param=name)
    return tuple(map(float, values))


def read_grids(name: str, tensor: RawTensor, merge_size: int) -> tuple[Grid, ...]:
    """Reads patch grids of the shape [3], [1, 3] or [n, 3]: time, height, width.

    Raises:
        BadEmbeddingsError: another shape, a side out of bounds, or a height or
            width that `merge_size` does not divide.
    """
    values = read_integers(name, tensor)
    fits = values.ndim in (1, 2) and values.shape[-1] == _GRID_SIDES
    if not fits or not 1 <= values.size // _GRID_SIDES <= MAX_GRIDS:
        raise BadEmbeddingsError(
            f"{name} has the shape {list(tensor.shape)}; it needs [3] or [n, 3] with n up to {MAX_GRIDS}",
            param=name,
        )
    rows = values.reshape(-1, _GRID_SIDES)
    if (rows < 1).any() or (rows > MAX_GRID_SIDE).any():
        raise BadEmbeddingsError(f"every side in {name} lies between 1 and {MAX_GRID_SIDE}", param=name)
    if (rows[:, 1:] % merge_size).any():
        raise BadEmbeddingsError(f"heights and widths in {name} are multiples of {merge_size}", param=name)
    return tuple(Grid(int(time), int(height), int(width)) for time, height, width in rows)


def read_size(name: str, tensor: RawTensor) -> tuple[int, int]:
    """Reads the size of one picture of the shape [2] or [1, 2]: height and width in pixels.

    Raises:
        BadEmbeddingsError: another shape, or a side below 1.
    """
    values = read_integers(name, tensor)
    if values.shape not in ((2,), (1, 2)) or (values < 1).any():
        raise BadEmbeddingsError(f"{name} is one height and one width, each at least 1", param=name)
    height, width = map(int, values.reshape(-1))
    return height, width
