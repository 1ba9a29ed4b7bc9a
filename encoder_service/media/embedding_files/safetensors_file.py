"""Safetensors files: a length, a JSON header, bytes. Read by hand to check all of it first."""

from __future__ import annotations

import msgspec

from encoder_service.media.embedding_files.layout import dense_tensor
from shared.errors import BadEmbeddingsError
from shared.families.base import RawTensor

_MAX_HEADER_LENGTH = 64 * 1024
_METADATA = "__metadata__"
_DATA_TYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
}


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def looks_like_safetensors(data: memoryview) -> bool:
    """Says whether the first bytes are a plausible length and the start of a JSON object."""
    return len(data) > 9 and data[8] == ord("{") and int.from_bytes(data[:8], "little") <= len(data)


def read_safetensors(name: str, data: memoryview) -> dict[str, RawTensor]:
    """Reads all tensors of a file.

    Raises:
        BadEmbeddingsError: a broken header, an unaccepted type, or offsets that
            overlap, leave gaps or leave the file.
    """
    length = int.from_bytes(data[:8], "little")
    if length > min(_MAX_HEADER_LENGTH, len(data) - 8):
        raise BadEmbeddingsError(f"{name}: the safetensors header is too long or truncated")
    entries = _entries(name, data[8 : 8 + length])
    _check_cover(name, entries, len(data) - 8 - length)
    body = data[8 + length :]
    return {tensor: _tensor(name, entry, body) for tensor, entry in entries.items()}


def _entries(name: str, header: memoryview) -> dict[str, _Entry]:
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop(_METADATA, None)
        entries = {tensor: msgspec.json.decode(entry, type=_Entry) for tensor, entry in raw.items()}
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadEmbeddingsError(f"{name}: broken safetensors header") from None
    if not entries:
        raise BadEmbeddingsError(f"{name}: the safetensors file holds no tensor")
    return entries


def _check_cover(name: str, entries: dict[str, _Entry], byte_count: int) -> None:
    """The tensors must cover the body exactly, without overlap."""
    position = 0
    for start, end in sorted(entry.data_offsets for entry in entries.values()):
        if start != position or end < start:
            raise BadEmbeddingsError(f"{name}: safetensors offsets overlap or leave gaps")
        position = end
    if position != byte_count:
        raise BadEmbeddingsError(f"{name}: the safetensors file is truncated or has trailing bytes")


def _tensor(name: str, entry: _Entry, body: memoryview) -> RawTensor:
    start, end = entry.data_offsets
    data_type = _DATA_TYPES.get(entry.dtype, entry.dtype)
    return dense_tensor(name, data_type, entry.shape, body[start:end])
