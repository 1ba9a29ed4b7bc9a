"""torch.save files of one dense tensor.

Knows the container: a zip with a pickle that describes the tensor and a member
that holds its bytes. The pickle goes to `torch_record`; neither torch nor
pickle is imported, and nothing in the file is executed.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Sequence

from encoder_service.media.embedding_files.layout import checked_shape, dense_tensor, item_byte_count
from encoder_service.media.embedding_files.torch_record import TensorRecord, read_record
from shared.errors import BadEmbeddingsError
from shared.families.base import RawTensor

SIGNATURE = b"PK\x03\x04"

_END_SIGNATURE = b"PK\x05\x06"
_END_LENGTH = 22
_MAX_MEMBER_COUNT = 32
_MAX_RECORD_LENGTH = 64 * 1024
_ENCRYPTED = 0x1


def read_torch_zip(name: str, data: memoryview) -> RawTensor:
    """Reads the tensor of a torch.save file.

    Raises:
        BadEmbeddingsError: no zip of torch's, compressed or encrypted members,
            anything but one dense contiguous tensor, or wrong sizes.
    """
    try:
        _check_member_count(name, data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read(name, archive)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError, KeyError):
        raise BadEmbeddingsError(f"{name}: broken zip archive") from None


def _check_member_count(name: str, data: memoryview) -> None:
    """Refuses an archive of many members before their directory is read."""
    tail = bytes(data[-_END_LENGTH - 0xFFFF :])
    end = tail.rfind(_END_SIGNATURE)
    if end < 0 or len(tail) < end + _END_LENGTH:
        raise BadEmbeddingsError(f"{name}: truncated zip archive")
    if int.from_bytes(tail[end + 10 : end + 12], "little") > _MAX_MEMBER_COUNT:
        raise BadEmbeddingsError(f"{name}: the zip archive has more than {_MAX_MEMBER_COUNT} members")


def _read(name: str, archive: zipfile.ZipFile) -> RawTensor:
    members = _members(name, archive)
    if "byteorder" in members and _bytes(archive, members["byteorder"], 16) != b"little":
        raise BadEmbeddingsError(f"{name}: only little-endian torch files are accepted")
    if "data.pkl" not in members:
        raise BadEmbeddingsError(f"{name}: the zip archive is no torch.save file")
    record = read_record(name, _bytes(archive, members["data.pkl"], _MAX_RECORD_LENGTH))
    storage = members.get(f"data/{record.storage_key}")
    if storage is None:
        raise BadEmbeddingsError(f"{name}: the torch file lacks its tensor's data")
    return _tensor(name, record, memoryview(_bytes(archive, storage, storage.compress_size)))


def _members(name: str, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by their path below the archive's one top folder."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        # torch stores members as they are, so anything else is somebody's bomb.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise BadEmbeddingsError(f"{name}: compressed torch files are not accepted")
        if info.flag_bits & _ENCRYPTED:
            raise BadEmbeddingsError(f"{name}: encrypted torch files are not accepted")
        path = info.filename.partition("/")[2]
        if path in members:
            raise BadEmbeddingsError(f"{name}: the torch file has a member twice")
        members[path] = info
    return members


def _bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_length: int) -> bytes:
    if info.file_size > max_length:
        raise ValueError("member too long")
    return archive.read(info)


def _tensor(name: str, record: TensorRecord, storage: memoryview) -> RawTensor:
    shape = checked_shape(name, record.shape)
    if not _is_contiguous(shape, record.strides):
        raise BadEmbeddingsError(f"{name}: the tensor is strided; save tensor.contiguous()")
    item_size = item_byte_count(name, record.data_type)
    if record.storage_length * item_size != len(storage):
        raise BadEmbeddingsError(f"{name}: the torch file's storage has a wrong size")
    start = record.storage_offset * item_size
    end = start + math.prod(shape) * item_size
    if start < 0 or end > len(storage):
        raise BadEmbeddingsError(f"{name}: the tensor lies outside its storage")
    return dense_tensor(name, record.data_type, shape, storage[start:end])


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    if len(shape) != len(strides):
        return False
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
