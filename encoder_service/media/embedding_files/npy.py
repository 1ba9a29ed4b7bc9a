"""NumPy's .npy files. Knows the header; never builds an object array."""

from __future__ import annotations

import ast
from typing import Any

from encoder_service.media.embedding_files.layout import dense_tensor
from shared.errors import BadEmbeddingsError
from shared.families.base import RawTensor

SIGNATURE = b"\x93NUMPY"

_MAX_HEADER_LENGTH = 1024
_HEADER_KEYS = {"descr", "fortran_order", "shape"}
_DATA_TYPES = {"<f4": "float32", "<f2": "float16", "<i8": "int64", "<i4": "int32"}


def read_npy(name: str, data: memoryview) -> RawTensor:
    """Reads one array.

    Raises:
        BadEmbeddingsError: a broken header, an element type other than little-endian
            float32, float16, int64 or int32, column-major order, or wrong size.
    """
    header, start = _split(name, data)
    descr = header["descr"]
    if not isinstance(descr, str) or descr not in _DATA_TYPES:
        raise BadEmbeddingsError(f"{name}: .npy element type {_shown(descr)} is not accepted")
    if header["fortran_order"] is not False:
        raise BadEmbeddingsError(f"{name}: .npy arrays must be in row-major (C) order")
    if not isinstance(header["shape"], tuple):
        raise BadEmbeddingsError(f"{name}: broken .npy header")
    return dense_tensor(name, _DATA_TYPES[descr], header["shape"], data[start:])


def _split(name: str, data: memoryview) -> tuple[dict[str, Any], int]:
    """Returns the header's fields and the offset of the first element."""
    major = data[6] if len(data) > 6 else 0
    width = {1: 2, 2: 4, 3: 4}.get(major)
    if width is None or len(data) < 8 + width:
        raise BadEmbeddingsError(f"{name}: unknown .npy version, or a truncated file")
    length = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width + length
    if length > _MAX_HEADER_LENGTH or start > len(data):
        raise BadEmbeddingsError(f"{name}: the .npy header is too long or truncated")
    return _parse(name, bytes(data[8 + width : start])), start


def _parse(name: str, text: bytes) -> dict[str, Any]:
    # literal_eval builds literals and executes nothing; the length above bounds its depth.
    try:
        header = ast.literal_eval(text.decode("latin-1").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        header = None
    if not isinstance(header, dict) or set(header) != _HEADER_KEYS:
        raise BadEmbeddingsError(f"{name}: broken .npy header")
    return header


def _shown(descr: object) -> str:
    return repr(descr)[:32] if isinstance(descr, str) else "(structured)"
