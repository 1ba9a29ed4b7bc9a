"""Between plain values and the wire's messages: layouts and tensors.

Knows NumPy-free byte layouts, so that any service may import it. Does not know
torch (see `shared/torch_tensors.py`) nor gRPC.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from protos.media.v1 import media_pb2
from protos.tensor.v1 import tensor_pb2
from shared.errors import InvalidRequestError
from shared.families.base import Grid, MediaInfo, RawTensor

CHUNK_BYTE_COUNT = 512 * 1024
"""Bytes of a tensor in one frame. 256 KiB to 1 MiB measure alike; smaller and larger are slower."""

MAX_TENSOR_RANK = 4
MAX_TIME_S = 65536.0
"""Latest time of a frame, in seconds."""

MAX_NAME_LENGTH = 64


@dataclass(frozen=True, slots=True)
class DataType:
    """One element type under all its names."""

    name: str
    item_byte_count: int
    wire: tensor_pb2.DataType.ValueType


DATA_TYPES: dict[str, DataType] = {
    data_type.name: data_type
    for data_type in (
        DataType("float32", 4, tensor_pb2.DATA_TYPE_FLOAT32),
        DataType("float16", 2, tensor_pb2.DATA_TYPE_FLOAT16),
        DataType("bfloat16", 2, tensor_pb2.DATA_TYPE_BFLOAT16),
        DataType("int64", 8, tensor_pb2.DATA_TYPE_INT64),
    )
}
_BY_WIRE = {data_type.wire: data_type for data_type in DATA_TYPES.values()}


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """A tensor without its bytes.

    Attributes:
        name: name within its item.
        data_type: key of `DATA_TYPES`.
        shape: sizes, outermost first; dimension 0 counts rows.
    """

    name: str
    data_type: str
    shape: tuple[int, ...]

    @property
    def byte_count(self) -> int:
        """Bytes of the whole tensor."""
        return tensor_byte_count(self.data_type, self.shape)

    @property
    def row_byte_count(self) -> int:
        """Bytes of one row."""
        return tensor_byte_count(self.data_type, self.shape[1:])


def tensor_byte_count(data_type: str, shape: Sequence[int]) -> int:
    """Bytes of a dense tensor; exact for any size, as Python integers do not wrap."""
    return DATA_TYPES[data_type].item_byte_count * math.prod(shape)


def chunk_ranges(byte_count: int, chunk_byte_count: int = CHUNK_BYTE_COUNT) -> Iterator[tuple[int, int]]:
    """Yields the half-open byte ranges that cover [0, byte_count) in order."""
    for start in range(0, byte_count, chunk_byte_count):
        yield start, min(start + chunk_byte_count, byte_count)


def info_to_wire(info: MediaInfo) -> media_pb2.MediaInfo:
    """Writes a layout."""
    grids = [media_pb2.Grid(time=grid.time, height=grid.height, width=grid.width) for grid in info.grids]
    message = media_pb2.MediaInfo(row_count=info.row_count, grids=grids)
    if info.image_size is not None:
        message.image_size.CopyFrom(media_pb2.Size(height=info.image_size[0], width=info.image_size[1]))
    message.timestamps.extend(info.timestamps)
    if info.seconds_per_grid is not None:
        message.seconds_per_grid = info.seconds_per_grid
    if info.duration is not None:
        message.duration = info.duration
    message.sound_row_count = info.sound_row_count
    return message


def info_from_wire(message: media_pb2.MediaInfo) -> MediaInfo:
    """Reads a layout.

    Raises:
        InvalidRequestError: a count or size below 1, or a time out of bounds.
    """
    grids = tuple(_grid(grid) for grid in message.grids)
    size = (message.image_size.height, message.image_size.width) if message.HasField("image_size") else None
    if message.row_count < 1 or (size is not None and min(size) < 1):
        raise InvalidRequestError("a media layout needs at least one row and positive sizes", param="info")
    if not all(0 <= time <= MAX_TIME_S for time in (*message.timestamps, message.duration)):
        raise InvalidRequestError("a frame's time is out of bounds", param="info.timestamps")
    spacing = message.seconds_per_grid if message.HasField("seconds_per_grid") else None
    if spacing is not None and not 0 < spacing <= MAX_TIME_S:
        raise InvalidRequestError("the time between frames is out of bounds", param="info.seconds_per_grid")
    if not 0 <= message.sound_row_count <= message.row_count:
        raise InvalidRequestError("more rows of sound than rows", param="info.sound_row_count")
    return MediaInfo(
        row_count=message.row_count,
        grids=grids,
        image_size=size,
        timestamps=tuple(message.timestamps),
        seconds_per_grid=spacing,
        duration=message.duration if message.HasField("duration") else None,
        sound_row_count=message.sound_row_count,
    )


def _grid(message: media_pb2.Grid) -> Grid:
    if min(message.time, message.height, message.width) < 1:
        raise InvalidRequestError("every side of a patch grid is at least 1", param="info.grids")
    return Grid(message.time, message.height, message.width)


def header_to_wire(key: str, info: MediaInfo, tensors: Sequence[TensorLayout]) -> media_pb2.EmbeddingsHeader:
    """Announces an item's tensors."""
    return media_pb2.EmbeddingsHeader(
        key=key,
        info=info_to_wire(info),
        tensors=[
            tensor_pb2.TensorHeader(
                name=layout.name, data_type=DATA_TYPES[layout.data_type].wire, shape=layout.shape
            )
            for layout in tensors
        ],
    )


def layouts_from_wire(header: media_pb2.EmbeddingsHeader) -> list[TensorLayout]:
    """Reads and checks the tensors that a header announces.

    Raises:
        InvalidRequestError: none, a bad name, type or shape, or rows that differ
            from the item's.
    """
    if not header.tensors:
        raise InvalidRequestError("an item has at least one tensor", param="header.tensors")
    layouts = [_layout(tensor, f"header.tensors[{i}]") for i, tensor in enumerate(header.tensors)]
    if len({layout.name for layout in layouts}) != len(layouts):
        raise InvalidRequestError("an item's tensors need different names", param="header.tensors")
    if any(layout.shape[0] != header.info.row_count for layout in layouts):
        raise InvalidRequestError("dimension 0 of a tensor counts the item's rows", param="header.tensors")
    return layouts


def _layout(tensor: tensor_pb2.TensorHeader, param: str) -> TensorLayout:
    data_type = _BY_WIRE.get(tensor.data_type)
    if data_type is None:
        raise InvalidRequestError("unknown element type", param=f"{param}.data_type")
    if not 1 <= len(tensor.shape) <= MAX_TENSOR_RANK or min(tensor.shape) < 1:
        raise InvalidRequestError(
            f"a tensor has 1 to {MAX_TENSOR_RANK} dimensions of at least 1", param=f"{param}.shape"
        )
    if not 1 <= len(tensor.name) <= MAX_NAME_LENGTH:
        raise InvalidRequestError(
            f"a tensor's name has 1 to {MAX_NAME_LENGTH} characters", param=f"{param}.name"
        )
    return TensorLayout(tensor.name, data_type.name, tuple(tensor.shape))


def layouts_of(tensors: Mapping[str, RawTensor]) -> list[TensorLayout]:
    """The layouts of tensors that are here, in their order."""
    return [TensorLayout(name, tensor.data_type, tensor.shape) for name, tensor in tensors.items()]
