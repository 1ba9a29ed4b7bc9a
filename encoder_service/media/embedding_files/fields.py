"""The fields of a precomputed item: which format each is in, and what they are together.

Knows the payload message and the formats' first bytes. Does not know what any
field means: the family does.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from encoder_service.media.embedding_files import npy, torch_zip
from encoder_service.media.embedding_files.numbers import read_json
from encoder_service.media.embedding_files.safetensors_file import (
    looks_like_safetensors,
    read_safetensors,
)
from protos.media.v1 import media_pb2
from shared.errors import BadEmbeddingsError
from shared.families.base import RawTensor
from shared.wire import MAX_NAME_LENGTH

_MAX_FIELD_COUNT = 16
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_fields(payload: bytes) -> dict[str, RawTensor]:
    """Reads a serialised `PrecomputedEmbeddings`.

    Returns:
        Tensors by field name. Their bytes are views of the payload where the
        format allows it.

    Raises:
        BadEmbeddingsError: a broken message, a bad or repeated name, or a field
            that is in no accepted format.
    """
    try:
        message = media_pb2.PrecomputedEmbeddings.FromString(payload)
    except DecodeError:
        raise BadEmbeddingsError("the payload is no PrecomputedEmbeddings message") from None
    if not 1 <= len(message.fields) <= _MAX_FIELD_COUNT:
        raise BadEmbeddingsError(f"precomputed embeddings have 1 to {_MAX_FIELD_COUNT} fields")
    tensors: dict[str, RawTensor] = {}
    for field in message.fields:
        for name, tensor in _read_field(field.name, field.data).items():
            if name in tensors:
                raise BadEmbeddingsError(f"the field {name} is there twice")
            tensors[name] = tensor
    return tensors


def _read_field(name: str, data: bytes) -> dict[str, RawTensor]:
    _check_name(name)
    view = memoryview(data)
    if not looks_like_safetensors(view):
        return {name: read_tensor(name, view)}
    tensors = read_safetensors(name, view)
    if len(tensors) == 1:
        # A lone tensor is the field's, whatever the file calls it.
        return {name: next(iter(tensors.values()))}
    for inner in tensors:
        _check_name(inner)
    return tensors


def _check_name(name: str) -> None:
    """Names come back in error texts, so they are kept to what a field can be called."""
    if not (1 <= len(name) <= MAX_NAME_LENGTH and name.isidentifier() and name.isascii()):
        raise BadEmbeddingsError("a field of precomputed embeddings has no proper name")


def read_tensor(name: str, data: memoryview) -> RawTensor:
    """Reads a file of one tensor that is no safetensors.

    Raises:
        BadEmbeddingsError: no accepted format, or a broken file of one.
    """
    head = bytes(data[:8])
    if head.startswith(npy.SIGNATURE):
        return npy.read_npy(name, data)
    if head.startswith(torch_zip.SIGNATURE):
        return torch_zip.read_torch_zip(name, data)
    if head.lstrip().startswith(b"["):
        return read_json(name, data)
    if head.startswith(_PICKLE_STARTS):
        raise BadEmbeddingsError(f"{name}: pickles and torch's legacy format are not accepted")
    raise BadEmbeddingsError(f"{name}: not a safetensors, .npy or torch.save file")
