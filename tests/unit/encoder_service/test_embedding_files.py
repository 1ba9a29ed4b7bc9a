"""Precomputed embeddings: real files are read bit for bit, hostile ones are refused unexecuted."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_service.media.embedding_files.fields import read_fields
from protos.media.v1 import media_pb2
from shared.errors import BadEmbeddingsError
from shared.families.base import RawTensor


def payload(**fields: bytes) -> bytes:
    message = media_pb2.PrecomputedEmbeddings(
        fields=[media_pb2.PrecomputedField(name=name, data=data) for name, data in sorted(fields.items())]
    )
    return message.SerializeToString()


def read_one(data: bytes) -> RawTensor:
    return read_fields(payload(image_embeds=data))["image_embeds"]


def torch_saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def npy_saved(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def npy_with(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def safetensors_with(header: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


def torch_zip_with(
    pickled: bytes, storage: bytes = b"\0" * 16, compression: int = zipfile.ZIP_STORED
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storage)
    return file.getvalue()


def torch_pickle(**changes: Any) -> bytes:
    """The pickle of a float32 tensor of shape (2, 2), with parts changed."""
    original = zipfile.ZipFile(io.BytesIO(torch_saved(torch.zeros(2, 2))))
    data = original.read("archive/data.pkl")
    for old, new in changes.get("replace", []):
        assert old in data
        data = data.replace(old, new)
    return data


DENSE = [
    torch.randn(3, 4),
    torch.randn(3, 4).half(),
    torch.randn(3, 4).bfloat16(),
    torch.randn(10, 4)[2:5],
    torch.randn(3, 4, requires_grad=True),
    torch.tensor([[1, 4, 4]]),
]


@pytest.mark.parametrize("tensor", DENSE, ids=lambda tensor: f"{tensor.dtype}")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_saved_tensors_are_read_bit_for_bit(tensor: torch.Tensor, protocol: int) -> None:
    raw = read_one(torch_saved(tensor, pickle_protocol=protocol))
    assert raw.data_type == str(tensor.dtype).removeprefix("torch.")
    assert (raw.shape, bytes(raw.data)) == (tuple(tensor.shape), bytes_of(tensor))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_npy_arrays_are_read_bit_for_bit(dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    raw = read_one(npy_saved(array))
    assert (raw.data_type, raw.shape, bytes(raw.data)) == (dtype, (3, 4), array.tobytes())


@pytest.mark.parametrize("tensor", DENSE, ids=lambda tensor: f"{tensor.dtype}")
def test_safetensors_are_read_bit_for_bit(tensor: torch.Tensor) -> None:
    raw = read_one(safetensors.torch.save({"any_name": tensor.detach().clone()}))
    assert (raw.shape, bytes(raw.data)) == (tuple(tensor.shape), bytes_of(tensor))


def test_one_safetensors_file_may_hold_all_fields() -> None:
    file = safetensors.torch.save(
        {"image_embeds": torch.ones(4, 2), "image_grid_thw": torch.tensor([1, 4, 4])}
    )
    assert set(read_fields(payload(image_embeds=file))) == {"image_embeds", "image_grid_thw"}
    with pytest.raises(BadEmbeddingsError, match="twice"):
        read_fields(payload(image_embeds=file, image_grid_thw=b"[1,4,4]"))


def test_narrow_integers_are_widened() -> None:
    for file in (npy_saved(np.array([1, 4, 4], np.int32)), torch_saved(torch.tensor([1, 4, 4]).int())):
        raw = read_one(file)
        assert (raw.data_type, np.frombuffer(raw.data, "<i8").tolist()) == ("int64", [1, 4, 4])


@pytest.mark.parametrize(("text", "shape"), [(b"[1,4,4]", (3,)), (b" [[1, 4, 4], [1, 2, 2]]", (2, 3))])
def test_json_arrays_are_int64(text: bytes, shape: tuple[int, ...]) -> None:
    raw = read_one(text)
    assert (raw.data_type, raw.shape) == ("int64", shape)


@pytest.mark.parametrize(("text", "numbers"), [(b"[1.5]", [1.5]), (b"[[1, 0.25]]", [[1.0, 0.25]])])
def test_json_arrays_with_a_point_are_float32(text: bytes, numbers: list[Any]) -> None:
    raw = read_one(text)
    assert raw.data_type == "float32"
    assert np.frombuffer(raw.data, "<f4").reshape(raw.shape).tolist() == numbers


class _RunsCommand:
    """Pickles into a call of os.system."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_never_executed(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "executed"
    hostile = pickle.dumps(_RunsCommand(f"touch {trace}"), protocol)
    for data in (
        hostile,
        torch_zip_with(hostile),
        torch_saved(_RunsCommand(f"touch {trace}")),
        torch_saved(_RunsCommand(f"touch {trace}"), _use_new_zipfile_serialization=False),
        npy_saved(np.array([_RunsCommand(f"touch {trace}")]), allow_pickle=True),
    ):
        with pytest.raises(BadEmbeddingsError):
            read_one(data)
    assert not trace.exists()


GLOBAL = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOSTILE_TORCH = {
    "another global": torch_pickle(replace=[(GLOBAL, b"cbuiltins\neval\n")]),
    "another torch global": torch_pickle(replace=[(b"ctorch\nFloatStorage\n", b"ctorch\nload\n")]),
    "another rebuild": torch_pickle(replace=[(GLOBAL, b"ctorch._utils\n_rebuild_sparse_tensor\n")]),
    "inst opcode": b"\x80\x02(ios\nsystem\n.",
    "build opcode": b"\x80\x02}}b.",
    "extension registry": b"\x80\x02\x82\x01.",
    "endless memo": b"\x80\x02" + b"K\x01q\x00" * 1000 + b".",
    "declared text of 4 GiB": b"\x80\x02X\xff\xff\xff\xffabc.",
    "declared frame": b"\x80\x04\x95" + b"\xff" * 8 + b".",
    "no stop": b"\x80\x02K\x01",
    "only stop": b".",
    "empty": b"",
    "stack underflow": b"\x80\x02\x87.",
    "mark without start": b"\x80\x02t.",
    "nested tuples": b"\x80\x02)" + b"\x85" * 200 + b".",
}


@pytest.mark.parametrize("name", HOSTILE_TORCH)
def test_hostile_torch_pickles_are_refused(name: str) -> None:
    with pytest.raises(BadEmbeddingsError):
        read_one(torch_zip_with(HOSTILE_TORCH[name]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x02K\x02\x86", b"J\xff\xff\xff\xffK\x02\x86"),  # a negative size
        (b"K\x02K\x02\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),  # 2^62 elements
        (b"K\x02K\x02\x86", b"K\x00K\x02\x86"),  # no rows
        (b"K\x02K\x01\x86", b"K\x00K\x00\x86"),  # strides of 0: one element seen many times
        (b"K\x02K\x01\x86", b"K\x01K\x02\x86"),  # column-major
        (b"QK\x00", b"QK\x01"),  # an offset that leaves the storage
        (b"K\x04t", b"K\x7ft"),  # a storage longer than its bytes
    ],
)
def test_torch_shapes_must_fit_their_bytes(old: bytes, new: bytes) -> None:
    with pytest.raises(BadEmbeddingsError):
        read_one(torch_zip_with(torch_pickle(replace=[(old, new)])))


def test_the_unchanged_torch_pickle_is_accepted() -> None:
    assert read_one(torch_zip_with(torch_pickle())).shape == (2, 2)


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(4, 3).t(),
        torch.ones(1).expand(5),
        torch.randn(3).double(),
        torch.eye(3).to_sparse(),
        torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (10**5, 10**5)),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3, dtype=torch.float8_e4m3fn),
        torch.nn.Parameter(torch.ones(2)),
        {"image_embeds": torch.ones(2)},
        [torch.ones(2)],
        torch.zeros(0, 4),
    ],
    ids=str,
)
def test_anything_but_one_dense_tensor_is_refused(value: Any) -> None:
    with pytest.raises(BadEmbeddingsError):
        read_one(torch_saved(value))


def test_the_legacy_torch_format_is_refused_by_name() -> None:
    with pytest.raises(BadEmbeddingsError, match="legacy"):
        read_one(torch_saved(torch.ones(2), _use_new_zipfile_serialization=False))


def test_compressed_zips_are_refused_before_they_are_inflated() -> None:
    bomb = torch_zip_with(torch_pickle(), b"\0" * 50_000_000, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    with pytest.raises(BadEmbeddingsError, match="compressed"):
        read_one(bomb)


def test_a_zip_of_many_members_is_refused_before_they_are_listed() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for index in range(100):
            archive.writestr(f"archive/{index}", b"")
    with pytest.raises(BadEmbeddingsError, match="members"):
        read_one(file.getvalue())


@pytest.mark.parametrize(
    "data",
    [
        npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"),
        npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2), }", b"\0" * 8),
        npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2), }", b"\0" * 8),
        npy_with("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", b"\0" * 16),
        npy_with("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", b"\0" * 8),
        npy_with("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\0" * 8),
        npy_with("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", b"\0" * 4),
        npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", b"\0" * 9),
        npy_with("{'descr': '<f4', 'shape': (2,), }", b"\0" * 8),
        npy_with("__import__('os').getpid()"),
        npy_with("(" * 100),
        npy_with("-" * 115),
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY\x09\x00\x10\x00",
        b"\x93NUMPY",
        npy_saved(np.ones(2)),
        npy_saved(np.array(["text"])),
        npy_saved(np.ones((2, 2), np.float32))[:-1],
    ],
)
def test_hostile_npy_files_are_refused(data: bytes) -> None:
    with pytest.raises(BadEmbeddingsError):
        read_one(data)


@pytest.mark.parametrize(
    "data",
    [
        safetensors_with('{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,8]}}', b"\0" * 8),
        safetensors_with('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', b"\0" * 8),
        safetensors_with('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}', b"\0" * 8),
        safetensors_with('{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}', b"\0" * 8),
        safetensors_with('{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}', b"\0" * 8),
        safetensors_with('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 9),
        safetensors_with(
            '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            '"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            b"\0" * 8,
        ),
        safetensors_with('{"a":' * 10_000),
        safetensors_with("{}"),
        safetensors_with(
            '{"../x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            '"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            b"\0" * 8,
        ),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
    ],
)
def test_hostile_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(BadEmbeddingsError):
        read_one(data)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 10_000,
        b"[" * 200_000,
        b"[1,[2]]",
        b"[[1,2],[3]]",
        b"[]",
        b"[[]]",
        b"[true]",
        b"[1e400]",
        b"[99999999999999999999]",
        b'["1"]',
        b"[1",
        b"[\xff]",
        b"[[[1]]]",
    ],
)
def test_hostile_json_is_refused(data: bytes) -> None:
    with pytest.raises(BadEmbeddingsError):
        read_one(data)


@pytest.mark.parametrize("data", [b"", b"\0", b"garbage", b"PK\x03\x04", np.ones(8, np.float32).tobytes()])
def test_unknown_files_are_refused(data: bytes) -> None:
    with pytest.raises(BadEmbeddingsError):
        read_one(data)


@pytest.mark.parametrize(
    "message",
    [
        b"\xff\xff\xff",
        payload(),
        payload(**{"bad name": b"[1]"}),
        payload(**{"x" * 65: b"[1]"}),
        payload(**{f"field_{index}": b"[1]" for index in range(17)}),
    ],
)
def test_broken_messages_are_refused(message: bytes) -> None:
    with pytest.raises(BadEmbeddingsError):
        read_fields(message)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_leads_to_anything_but_a_typed_error(data: st.DataObject) -> None:
    files = [
        torch_saved(torch.ones(2, 3)),
        npy_saved(np.ones((2, 3), np.float32)),
        safetensors.torch.save({"a": torch.ones(2, 3)}),
        b"[[1,2,3]]",
    ]
    damaged = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        raw = read_one(bytes(damaged))
    except BadEmbeddingsError:
        return
    assert memoryview(raw.data).nbytes <= 8 * len(damaged)
