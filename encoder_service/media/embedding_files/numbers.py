"""JSON arrays of numbers, for grids, sizes and times."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from shared.errors import BadEmbeddingsError
from shared.families.base import RawTensor

_MAX_LENGTH = 16 * 1024
_MAX_ABSOLUTE = 2**62


def read_json(name: str, data: memoryview) -> RawTensor:
    """Reads `[1,4,4]` or `[[1,4,4],[1,2,2]]` as int64, and as float32 where a number has a point.

    Raises:
        BadEmbeddingsError: anything else, ragged rows included.
    """
    if len(data) > _MAX_LENGTH:
        raise BadEmbeddingsError(f"{name}: the JSON array is longer than {_MAX_LENGTH} bytes")
    try:
        numbers = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadEmbeddingsError(f"{name}: broken JSON") from None
    if _is_row(numbers):
        return _tensor((len(numbers),), numbers)
    if isinstance(numbers, list) and numbers and all(_is_row(row) for row in numbers):
        width = len(numbers[0])
        if all(len(row) == width for row in numbers):
            return _tensor((len(numbers), width), numbers)
    raise BadEmbeddingsError(f"{name}: JSON must be an array of numbers, or an array of equally long ones")


def _is_row(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(type(number) in (int, float) and abs(number) < _MAX_ABSOLUTE for number in value)
    )


def _tensor(shape: tuple[int, ...], numbers: list[Any]) -> RawTensor:
    array = np.array(numbers)
    if array.dtype.kind == "f":
        return RawTensor("float32", shape, array.astype("<f4").tobytes())
    return RawTensor("int64", shape, array.astype("<i8").tobytes())
