"""What the pool and its workers say to each other, and how tensors pass between them.

One datagram per message (MessagePack), with at most one file descriptor: a memory
file that holds the payload on the way in and the tensors on the way out. Nobody
unpickles anything, because a worker that a payload has taken over must not be
able to take over its parent.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from shared import errors
from shared.families.base import EncodedItem, Features, Grid, MediaInfo, Modality, RawTensor

MAX_MESSAGE_LENGTH = 64 * 1024
_ALIGNMENT = 64

SAMPLES, SAMPLING_RATE, PIECE_STARTS = "samples", "sampling_rate", "piece_starts"
"""Arrays of the result of a job that wishes for pieces."""

_NUMPY_TYPES = frozenset({"float32", "float64", "float16", "int64", "int32", "uint8", "bool"})


class Job(msgspec.Struct, tag=True, frozen=True):
    """An item to work on; its payload is the whole memory file.

    Attributes:
        form: what the payload is: an encoded file, serialised
            `PrecomputedEmbeddings` or a serialised `FrameList`.
        settings: canonical JSON of the processor settings, or "".
        modality: what it shows.
        wish: features of an item for the tower, or a decoded recording and where to cut it.
    """

    form: Literal["file", "embeddings", "frames"]
    settings: str
    modality: Modality = "image"
    wish: Literal["features", "pieces"] = "features"


class ArrayRecord(msgspec.Struct, frozen=True):
    """Where one tensor lies in the memory file, in bytes."""

    name: str
    data_type: str
    shape: tuple[int, ...]
    offset: int
    byte_count: int


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The worker has its preprocessor."""


class Done(msgspec.Struct, tag=True, frozen=True):
    """The result; its tensors are in the memory file.

    Attributes:
        token_cost: that of `Features`; 0 for precomputed embeddings, which need no
            tower.
    """

    row_count: int
    grids: tuple[tuple[int, int, int], ...]
    image_size: tuple[int, int] | None
    token_cost: int
    arrays: tuple[ArrayRecord, ...]
    timestamps: tuple[float, ...] = ()
    seconds_per_grid: float | None = None
    duration: float | None = None
    sound_row_count: int = 0


class Failed(msgspec.Struct, tag=True, frozen=True):
    """A typed error of `shared.errors`, by the name of its class."""

    kind: str
    message: str
    param: str | None = None
    code: str | None = None


Reply = Ready | Done | Failed

_KINDS = {
    kind.__name__: kind
    for kind in (
        errors.InvalidRequestError,
        errors.BadMediaError,
        errors.MediaTooLargeError,
        errors.UnsupportedMediaError,
        errors.BadEmbeddingsError,
        errors.InternalError,
    )
}

_decode_job = msgspec.msgpack.Decoder(Job)
_decode_reply = msgspec.msgpack.Decoder(Reply)


def send(channel: socket.socket, message: Job | Reply, file: int | None = None) -> None:
    """Sends one message. The file stays the caller's."""
    data = msgspec.msgpack.encode(message)
    socket.send_fds(channel, [data], [] if file is None else [file])


def receive_job(channel: socket.socket) -> tuple[Job, int] | None:
    """Waits for a job and its file, which the caller closes. None when the pool is gone."""
    data, files, _, _ = socket.recv_fds(channel, MAX_MESSAGE_LENGTH, 1)
    return (_decode_job.decode(data), files[0]) if data else None


def receive_reply(channel: socket.socket) -> tuple[Reply, int | None]:
    """Waits for a reply and its file, which the caller closes.

    Raises:
        TimeoutError: the socket's own.
        ConnectionError: the worker is gone.
    """
    data, files, _, _ = socket.recv_fds(channel, MAX_MESSAGE_LENGTH, 1)
    if not data:
        raise ConnectionResetError("the worker is gone")
    return _decode_reply.decode(data), files[0] if files else None


def to_error(failed: Failed) -> errors.PerceptError:
    """Builds the typed error again."""
    kind = _KINDS.get(failed.kind, errors.InternalError)
    return kind(failed.message, param=failed.param, code=failed.code)


def from_error(error: errors.PerceptError) -> Failed:
    """Writes a typed error; its text is cut to what a message can carry."""
    kind = next(known.__name__ for known in type(error).__mro__ if known.__name__ in _KINDS)
    return Failed(kind=kind, message=error.message[:2000], param=error.param, code=error.code)


def payload_file(payload: bytes) -> int:
    """Writes bytes to a new memory file and returns its descriptor."""
    file = os.memfd_create("percept-payload")
    _write(file, memoryview(payload), 0)
    return file


def pack(result: Features | EncodedItem) -> tuple[Done, int]:
    """Writes a result's tensors to a new memory file, sealed against shrinking."""
    if isinstance(result, Features):
        parts = {name: _of_array(array) for name, array in result.arrays.items()}
        token_cost = result.token_cost
    else:
        parts = {name: _of_tensor(tensor) for name, tensor in result.tensors.items()}
        token_cost = 0
    file = os.memfd_create("percept-tensors", os.MFD_ALLOW_SEALING)
    records = []
    offset = 0
    for name, (data_type, shape, data) in parts.items():
        _write(file, data, offset)
        records.append(ArrayRecord(name, data_type, tuple(shape), offset, data.nbytes))
        offset += -(-data.nbytes // _ALIGNMENT) * _ALIGNMENT
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    info = result.info
    grids = tuple((grid.time, grid.height, grid.width) for grid in info.grids)
    return (
        Done(
            info.row_count,
            grids,
            info.image_size,
            token_cost,
            tuple(records),
            info.timestamps,
            info.seconds_per_grid,
            info.duration,
            info.sound_row_count,
        ),
        file,
    )


def unpack(done: Done, file: int) -> Features | EncodedItem:
    """Maps a result without copying it; the memory goes when the last array does."""
    # A file that could still shrink under the mapping could kill us with SIGBUS.
    if not fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise errors.InternalError("a worker sent a file without seals")
    mapping = memoryview(
        mmap.mmap(file, os.fstat(file).st_size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    )
    grids = tuple(Grid(*grid) for grid in done.grids)
    info = MediaInfo(
        done.row_count,
        grids,
        done.image_size,
        done.timestamps,
        done.seconds_per_grid,
        done.duration,
        done.sound_row_count,
    )
    parts = {record.name: (record, mapping[record.offset :][: record.byte_count]) for record in done.arrays}
    if done.token_cost == 0:
        tensors = {
            name: RawTensor(record.data_type, record.shape, data) for name, (record, data) in parts.items()
        }
        return EncodedItem(info, tensors)
    arrays = {name: _array(record, data) for name, (record, data) in parts.items()}
    return Features(info, arrays, done.token_cost)


def _array(record: ArrayRecord, data: memoryview) -> npt.NDArray[np.generic]:
    if record.data_type not in _NUMPY_TYPES:
        raise errors.InternalError("a worker sent an array of an unknown type")
    return np.frombuffer(data, record.data_type).reshape(record.shape)


def _of_array(array: npt.NDArray[np.generic]) -> tuple[str, Sequence[int], memoryview]:
    dense = np.ascontiguousarray(array)
    # ascontiguousarray makes a scalar one-dimensional; the shape is the original's.
    return dense.dtype.name, array.shape, dense.reshape(-1).view(np.uint8).data


def _of_tensor(tensor: RawTensor) -> tuple[str, Sequence[int], memoryview]:
    return tensor.data_type, tensor.shape, memoryview(tensor.data).cast("B")


def _write(file: int, data: memoryview, offset: int) -> None:
    while len(data) > 0:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def decoded_settings(text: str) -> Mapping[str, object]:
    """Parses an item's settings.

    Raises:
        InvalidRequestError: not a JSON object.
    """
    if not text:
        return {}
    try:
        settings = msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError):
        raise errors.InvalidRequestError("settings must be a JSON object", param="item.settings") from None
    return settings
