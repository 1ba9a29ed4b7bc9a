"""Tensors of any library to plain bytes, and safetensors files of them.

Knows NumPy. A torch tensor is read through its own methods, so nothing here
imports torch. Does not know what a tensor means.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from percept.client.loaded import is_torch_tensor
from shared.errors import BadEmbeddingsError
from shared.families.base import RawTensor
from shared.wire import tensor_byte_count

_FILE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
_FROM_FILE = {name: data_type for data_type, name in _FILE_NAMES.items()}
_ALIGNMENT = 8
_METADATA = "__metadata__"


def raw_tensor(value: Any, name: str) -> RawTensor:
    """Reads a tensor, an array, or a list of numbers or of such.

    float64 becomes float32, which is the widest that any model computes in; other
    floats stay as they are, integers become int64.

    Raises:
        BadEmbeddingsError: it is none of these, or of another element type.
    """
    if isinstance(value, RawTensor):
        return value
    if is_torch_tensor(value):
        return _of_torch(value, name)
    if isinstance(value, list | tuple) and value and is_torch_tensor(value[0]):
        return _of_torch(sys.modules["torch"].stack(list(value)), name)
    try:
        array = np.asarray(value)
    except ValueError:
        raise BadEmbeddingsError(f"{name} is ragged", param=name) from None
    return _of_numpy(array, name)


def _of_torch(tensor: Any, name: str) -> RawTensor:
    tensor = tensor.detach().cpu().contiguous()
    if str(tensor.dtype) == "torch.bfloat16":
        # NumPy has no such type; its bits travel as integers.
        bits = tensor.view(sys.modules["torch"].int16)
        return RawTensor("bfloat16", tuple(tensor.shape), bits.numpy().tobytes())
    return _of_numpy(tensor.numpy(), name)


def _of_numpy(array: npt.NDArray[Any], name: str) -> RawTensor:
    if array.dtype.kind in "iu":
        return RawTensor("int64", array.shape, array.astype("<i8").tobytes())
    if array.dtype.kind == "f":
        data_type = "float16" if array.dtype.itemsize == 2 else "float32"
        return RawTensor(
            data_type, array.shape, array.astype("<f2" if data_type == "float16" else "<f4").tobytes()
        )
    raise BadEmbeddingsError(f"{name} holds {array.dtype}; numbers are needed", param=name)


def to_numpy(tensor: RawTensor) -> npt.NDArray[Any]:
    """The tensor as NumPy has it: floats as float32, integers as int64. Nothing is lost."""
    if tensor.data_type == "int64":
        return np.frombuffer(tensor.data, "<i8").reshape(tensor.shape).copy()
    if tensor.data_type == "bfloat16":
        # The upper half of a float32.
        bits = np.frombuffer(tensor.data, "<u2").astype("<u4") << 16
        return bits.view("<f4").reshape(tensor.shape)
    kind = "<f2" if tensor.data_type == "float16" else "<f4"
    return np.frombuffer(tensor.data, kind).astype(np.float32).reshape(tensor.shape)


def to_torch(tensor: RawTensor) -> Any:
    """The tensor as torch has it, in its own element type. Imports torch."""
    import torch

    data_type = getattr(torch, tensor.data_type)
    return torch.frombuffer(bytearray(tensor.data), dtype=data_type).reshape(tensor.shape)


def rows_of(tensor: RawTensor, start: int, end: int) -> RawTensor:
    """The rows from `start` up to `end`."""
    size = tensor_byte_count(tensor.data_type, tensor.shape[1:])
    data = memoryview(tensor.data)[start * size : end * size]
    return RawTensor(tensor.data_type, (end - start, *tensor.shape[1:]), data)


def write_safetensors(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: https://github.com/huggingface/safetensors#format."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor_byte_count(tensor.data_type, tensor.shape)
        header[name] = {
            "dtype": _FILE_NAMES[tensor.data_type],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *(tensor.data for tensor in tensors.values())])


def read_safetensors(data: bytes) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    Raises:
        BadEmbeddingsError: it is none, is truncated, or holds a type that embeddings cannot have.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 + length:
            raise ValueError("it is truncated")
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop(_METADATA, {})
        body = memoryview(data)[8 + length :]
        tensors = {name: _entry(entry, body) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadEmbeddingsError(f"no safetensors file of embeddings: {error}") from None
    return tensors, {str(name): str(text) for name, text in metadata.items()}


def _entry(entry: Mapping[str, Any], body: memoryview) -> RawTensor:
    start, end = entry["data_offsets"]
    data_type, shape = _FROM_FILE[entry["dtype"]], tuple(entry["shape"])
    if end > len(body) or tensor_byte_count(data_type, shape) != end - start:
        raise ValueError("it is truncated")
    return RawTensor(data_type, shape, body[start:end])
