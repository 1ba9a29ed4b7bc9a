"""Embeddings as a user precomputes them: a picture or a video through `Encode`, then a content part.

Knows the wire of the encoder service and the names of the fields. Does not know any family.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
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
from tests.asking import encode_tensor

TIMEOUT_S = 60.0


async def encode(address: str, picture: Image.Image) -> tuple[media_pb2.MediaInfo, dict[str, torch.Tensor]]:
    """A picture's layout and tensors from the encoder at HOST:PORT, which delivers them to nobody else."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    payload = buffer.getvalue()
    modality, form = media_pb2.MODALITY_IMAGE, media_pb2.MEDIA_FORM_FILE
    key = content_key(modality, form, "", payload)
    item = media_pb2.MediaItem(key=key, modality=modality, form=form)
    async with grpc.aio.insecure_channel(address) as channel:
        call = EncoderServiceStub(channel).Encode(timeout=TIMEOUT_S)
        header = EncodeHeader(item=item, byte_count=len(payload))
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
    info: media_pb2.MediaInfo, tensors: dict[str, torch.Tensor], fields: Sequence[str]
) -> dict[str, Any]:
    """A content part with a picture's embeddings.

    Args:
        fields: which of image_grid_thw and image_sizes the family takes beside the rows.
            Further tensors go under their own names.
    """
    known = {
        "image_grid_thw": [[grid.time, grid.height, grid.width] for grid in info.grids],
        "image_sizes": [[info.image_size.height, info.image_size.width]],
    }
    named = {"image_embeds" if name == MAIN_TENSOR else name: tensor for name, tensor in tensors.items()}
    named |= {name: torch.tensor(known[name]) for name in fields}
    encoded = {name: encode_tensor(tensor, "safetensors") for name, tensor in named.items()}
    return {"type": "image_embeds", "image_embeds": encoded}
