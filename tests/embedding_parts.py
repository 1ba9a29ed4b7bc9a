"""Embeddings as a user precomputes them: an item through `Encode`, then a content part.

Knows the wire of the encoder service and the names of the fields. Does not know any family.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import torch
from PIL import Image

from protos.encoder.v1.encoder_service_pb2 import EncodeHeader
from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceStub
from protos.media.v1 import media_pb2
from shared.content_key import content_key
from shared.encode_call import converse
from shared.families.base import MAIN_TENSOR, RawTensor
from shared.torch_tensors import from_raw
from shared.wire import layouts_from_wire
from tests.asking import encode_tensor, wave_file
from tests.oracle import Media, Recording

TIMEOUT_S = 60.0


async def encode(address: str, item: Media) -> tuple[media_pb2.MediaInfo, dict[str, torch.Tensor]]:
    """An item's layout and tensors from the encoder at HOST:PORT, which delivers them to nobody else."""
    header, payload = _header(item)
    async with grpc.aio.insecure_channel(address) as channel:
        call = EncoderServiceStub(channel).Encode(timeout=TIMEOUT_S)
        answers = [answer async for answer in converse(call, header, payload)]
        assert await call.code() is grpc.StatusCode.OK, await call.details()
    (announced,) = [answer.header for answer in answers if answer.HasField("header")]
    chunks = [answer.chunk for answer in answers if answer.HasField("chunk")]
    return announced.info, {
        layout.name: from_raw(
            RawTensor(
                layout.data_type,
                layout.shape,
                b"".join(chunk.data for chunk in chunks if chunk.tensor_index == index),
            )
        )
        for index, layout in enumerate(layouts_from_wire(announced))
    }


def part_from(
    info: media_pb2.MediaInfo,
    tensors: Mapping[str, torch.Tensor],
    modality: str,
    fields: Sequence[str],
) -> dict[str, Any]:
    """A content part with an item's embeddings.

    Args:
        modality: "image", "video" or "audio".
        fields: names that the family takes, the rows first. Further tensors go under
            their own.
    """
    known: dict[str, torch.Tensor] = {
        **tensors,
        fields[0]: tensors[MAIN_TENSOR],
        f"{modality}_grid_thw": torch.tensor([[grid.time, grid.height, grid.width] for grid in info.grids]),
        "image_sizes": torch.tensor([[info.image_size.height, info.image_size.width]]),
        "second_per_grid_ts": torch.tensor([info.seconds_per_grid]),
        "timestamps": torch.tensor(list(info.timestamps)),
        "duration": torch.tensor([info.duration]),
        "sound_row_count": torch.tensor([info.sound_row_count]),
    }
    further = [name for name in tensors if name != MAIN_TENSOR]
    encoded = {name: encode_tensor(known[name], "safetensors") for name in [*fields, *further]}
    return {"type": f"{modality}_embeds", f"{modality}_embeds": encoded}


def _header(item: Media) -> tuple[EncodeHeader, bytes]:
    if isinstance(item, Image.Image):
        modality, form, payload = media_pb2.MODALITY_IMAGE, media_pb2.MEDIA_FORM_FILE, _png(item)
    elif isinstance(item, Recording):
        modality, form = media_pb2.MODALITY_AUDIO, media_pb2.MEDIA_FORM_FILE
        payload = wave_file(item.samples, item.rate)
    else:
        modality, form = media_pb2.MODALITY_VIDEO, media_pb2.MEDIA_FORM_FRAMES
        frames = [_png(Image.fromarray(frame)) for frame in item.frames]
        payload = media_pb2.FrameList(frames=frames, frames_per_second=item.fps).SerializeToString()
    key = content_key(modality, form, "", payload)
    identity = media_pb2.MediaItem(key=key, modality=modality, form=form)
    return EncodeHeader(item=identity, byte_count=len(payload)), payload


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
