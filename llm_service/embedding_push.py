"""One delivery of one item: how much of it has come, and where it goes.

Knows byte counts and offsets. Knows neither the stream that it comes from nor
whether anybody wants it.
"""

from __future__ import annotations

import asyncio
from typing import cast

from llm_service.engine.messages import ArenaTensor, DataType
from shared.embedding_arena import round_up
from shared.errors import InvalidRequestError
from shared.families.base import MediaInfo
from shared.wire import TensorLayout

MAX_CHUNK_BYTES = 1024 * 1024
_TENSOR_ALIGNMENT = 64


class Push:
    """An item on its way.

    Attributes:
        byte_count: size of its region in the arena, in whole pages.
        granted: true once it has room and may be read; false where its rows are
            not wanted and only to be drained.
        open: whether it has its region now.
        offset: first byte of its region.
        row_count: leading rows of which all tensors are here.
    """

    def __init__(self, key: str, info: MediaInfo, tensors: list[TensorLayout]) -> None:
        self.key = key
        self.info = info
        self.tensors = tensors
        self.granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.open = False
        self.offset = 0
        self.row_count = 0
        self._received = [0] * len(tensors)
        self._starts: list[int] = []
        end = 0
        for tensor in tensors:
            self._starts.append(end)
            end += round_up(tensor.byte_count, _TENSOR_ALIGNMENT)
        self.byte_count = round_up(end)

    @property
    def complete(self) -> bool:
        """Whether every row is here."""
        return self.row_count == self.info.row_count

    def answer(self, granted: bool) -> None:
        """Resolves `granted`, unless whoever waited for it is gone."""
        if not self.granted.done():
            self.granted.set_result(granted)

    def open_at(self, offset: int) -> None:
        """Gives the push its region."""
        self.open = True
        self.offset = offset

    def arena_tensors(self) -> list[ArenaTensor]:
        """Where the engine finds the tensors."""
        return [
            ArenaTensor(
                tensor.name,
                cast(DataType, tensor.data_type),
                (tensor.shape[0], tensor.shape[1]),
                self.offset + start,
            )
            for tensor, start in zip(self.tensors, self._starts, strict=True)
        ]

    def accept(self, tensor_index: int, byte_offset: int, byte_count: int) -> int:
        """Counts a chunk in. Returns its place within the region.

        Raises:
            InvalidRequestError: it does not continue its tensor, or is too long.
        """
        if not 0 <= tensor_index < len(self.tensors):
            raise InvalidRequestError(f"there is no tensor {tensor_index}", param="chunk.tensor_index")
        received = self._received[tensor_index]
        if byte_offset != received:
            raise InvalidRequestError(
                f"the next byte of the tensor is {received}, not {byte_offset}", param="chunk.byte_offset"
            )
        room = min(MAX_CHUNK_BYTES, self.tensors[tensor_index].byte_count - received)
        if not 0 <= byte_count <= room:
            raise InvalidRequestError("the chunk is longer than allowed", param="chunk.data")
        self._received[tensor_index] = received + byte_count
        return self._starts[tensor_index] + received

    def advance(self) -> bool:
        """Counts whole rows. Returns whether there are more than before."""
        before = self.row_count
        self.row_count = min(
            received // tensor.row_byte_count
            for received, tensor in zip(self._received, self.tensors, strict=True)
        )
        return self.row_count > before

    def check_whole(self) -> None:
        """Refuses a stream that ended before its tensors were whole.

        Raises:
            InvalidRequestError: bytes are missing.
        """
        for received, tensor in zip(self._received, self.tensors, strict=True):
            if received != tensor.byte_count:
                raise InvalidRequestError(
                    f"the stream ended after {received} of {tensor.byte_count} bytes of {tensor.name}",
                    param="chunk",
                )
