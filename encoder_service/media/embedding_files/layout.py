"""What all readers check: shapes, sizes and element types as files declare them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.errors import BadEmbeddingsError
from shared.families.base import RawTensor
from shared.wire import DATA_TYPES, MAX_TENSOR_RANK

_WIDENED = "int32"
"""The one type that is taken and not kept: grids are often saved so."""


def item_byte_count(name: str, data_type: str) -> int:
    """Bytes per element of an accepted type.

    Raises:
        BadEmbeddingsError: any other type.
    """
    if data_type == _WIDENED:
        return 4
    if data_type not in DATA_TYPES:
        raise BadEmbeddingsError(
            f"{name}: element type {data_type[:32]} is not accepted; "
            "float32, float16 and bfloat16 are, and int64 and int32 for grids and sizes"
        )
    return DATA_TYPES[data_type].item_byte_count


def checked_shape(name: str, shape: Sequence[Any]) -> tuple[int, ...]:
    """Returns a declared shape as a tuple.

    Raises:
        BadEmbeddingsError: too many dimensions, or a size that is no integer or
            below 1.
    """
    if len(shape) > MAX_TENSOR_RANK:
        raise BadEmbeddingsError(f"{name}: a tensor of {len(shape)} dimensions is not accepted")
    if not all(type(size) is int and size >= 1 for size in shape):
        raise BadEmbeddingsError(f"{name}: every dimension must be an integer of at least 1")
    return tuple(shape)


def dense_tensor(name: str, data_type: str, shape: Sequence[Any], data: memoryview) -> RawTensor:
    """Builds a tensor from exactly its bytes.

    Raises:
        BadEmbeddingsError: the bytes are not as many as type and shape imply.
    """
    item_size = item_byte_count(name, data_type)
    sizes = checked_shape(name, shape)
    # Python integers do not wrap: a shape of astronomic size is just unequal.
    if math.prod(sizes) * item_size != len(data):
        raise BadEmbeddingsError(f"{name}: the data are {len(data)} bytes, which shape and type contradict")
    if data_type == _WIDENED:
        return RawTensor("int64", sizes, np.frombuffer(data, "<i4").astype("<i8").tobytes())
    return RawTensor(data_type, sizes, data)
