"""An item's tensors as they come back from an encoder service.

Knows the frames and how a layout is written as fields. Does not choose the replica.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from percept.client.items import Item
from percept.client.replicas import Replica
from protos.encoder.v1 import encoder_service_pb2
from shared.deadline import Deadline
from shared.encode_call import converse
from shared.errors import InternalError, InvalidRequestError, UnavailableError
from shared.families.base import MAIN_TENSOR, MediaInfo, RawTensor
from shared.families.catalogue import Modality, facts_of
from shared.wire import TensorLayout, info_from_wire, layouts_from_wire

if TYPE_CHECKING:
    from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceAsyncStub


@dataclass(frozen=True, slots=True)
class Fetched:
    """Layout and tensors of one item, under the wire's names."""

    info: MediaInfo
    tensors: Mapping[str, RawTensor]

    def fields(self, family: str, modality: Modality) -> dict[str, RawTensor]:
        """The same under the names by which they are sent back: rows first, then their layout."""
        facts = facts_of(family)
        known = facts.embedding_fields.get(modality) if facts is not None else None
        if known is None:
            raise InvalidRequestError(f"the {family} family takes no precomputed embeddings of {modality}s")
        tensors = {
            f"{modality}_embeds" if name == MAIN_TENSOR else name: tensor
            for name, tensor in self.tensors.items()
        }
        layout = _layout_fields(self.info, modality)
        fields = tensors | {name: layout[name] for name in known.names if name in layout}
        for name in known.required:
            if name not in fields:
                raise InternalError(f"the encoder service's answer does not say the {modality}'s {name}")
        return fields


def _layout_fields(info: MediaInfo, modality: Modality) -> dict[str, RawTensor]:
    fields: dict[str, RawTensor] = {}
    if info.grids:
        grids = [[grid.time, grid.height, grid.width] for grid in info.grids]
        fields[f"{modality}_grid_thw"] = _tensor(grids, "int64")
    if info.image_size is not None:
        fields["image_sizes"] = _tensor([list(info.image_size)], "int64")
    if info.seconds_per_grid is not None:
        fields["second_per_grid_ts"] = _tensor([info.seconds_per_grid], "float32")
    if info.duration is not None:
        fields["duration"] = _tensor([info.duration], "float32")
    if info.sound_row_count:
        fields["sound_row_count"] = _tensor([info.sound_row_count], "int64")
    if info.timestamps:
        fields["timestamps"] = _tensor(list(info.timestamps), "float32")
    return fields


def _tensor(values: Sequence[object], data_type: str) -> RawTensor:
    array = np.asarray(values, "<i8" if data_type == "int64" else "<f4")
    return RawTensor(data_type, array.shape, array.tobytes())


class _Assembly:
    """The tensors of one call while their chunks arrive."""

    def __init__(self) -> None:
        self.info: MediaInfo | None = None
        self.whole = False
        self._layouts: list[TensorLayout] = []
        self._parts: list[bytearray] = []

    def take(self, frame: encoder_service_pb2.EncodeResponse) -> None:
        match frame.WhichOneof("frame"):
            case "info":
                self.info = info_from_wire(frame.info)
            case "header":
                self._layouts = layouts_from_wire(frame.header)
                self._parts = [bytearray() for _ in self._layouts]
            case "chunk":
                part = self._parts[frame.chunk.tensor_index]
                if frame.chunk.byte_offset != len(part):
                    raise InternalError("the encoder service sent a tensor's bytes out of order")
                part += frame.chunk.data
            case "trailer":
                self.whole = True

    def tensors(self) -> dict[str, RawTensor]:
        if any(
            layout.byte_count != len(part) for layout, part in zip(self._layouts, self._parts, strict=True)
        ):
            raise InternalError("the encoder service sent a tensor in part")
        return {
            layout.name: RawTensor(layout.data_type, layout.shape, bytes(part))
            for layout, part in zip(self._layouts, self._parts, strict=True)
        }


async def fetch(replica: Replica[EncoderServiceAsyncStub], item: Item, deadline: Deadline) -> Fetched:
    """Has a replica encode an item and returns its tensors.

    Raises:
        PerceptError: the service's refusal, or a stream that broke off.
    """
    header = encoder_service_pb2.EncodeHeader(item=item.wire, byte_count=len(item.payload))
    assembly = _Assembly()
    with replica.call():
        call = replica.stub.Encode(timeout=deadline.remaining_s())
        try:
            async for frame in converse(call, header, item.payload):
                assembly.take(frame)
        finally:
            call.cancel()
    if not assembly.whole or assembly.info is None:
        raise UnavailableError(f"the encoder service at {replica.address} ended the stream early")
    return Fetched(assembly.info, assembly.tensors())
