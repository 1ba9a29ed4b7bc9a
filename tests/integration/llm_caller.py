"""A caller of the LLM service, and an encoder that pushes what transformers computed.

Speaks gRPC as any client would. Knows nothing of the service's inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image

from protos.llm.v1 import embedding_service_pb2 as embedding_pb
from protos.llm.v1 import embedding_service_pb2_grpc as embedding_grpc
from protos.llm.v1 import llm_service_pb2 as pb
from protos.llm.v1 import llm_service_pb2_grpc as pb_grpc
from protos.media.v1 import media_pb2
from protos.tensor.v1 import tensor_pb2
from shared.families.base import Grid, MediaInfo
from shared.wire import TensorLayout, chunk_ranges, header_to_wire
from tests.reference import ReferenceModel

TIMEOUT_S = 60.0


def picture(seed: int, size: tuple[int, int] = (84, 84)) -> Image.Image:
    """A picture of coloured noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 14, size[0] // 14, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR)


def key_of(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


@dataclass
class Answer:
    """What came of one call."""

    needed: list[list[str]] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    logprobs: list[pb.TokenLogprob] = field(default_factory=list)
    finishes: dict[int, pb.Finish] = field(default_factory=dict)
    deltas: list[pb.Delta] = field(default_factory=list)

    def take(self, frame: pb.GenerateResponse) -> None:
        match frame.WhichOneof("frame"):
            case "media_needed":
                self.needed.append(list(frame.media_needed.keys))
            case "delta":
                self._take_delta(frame.delta)
            case "finish":
                assert frame.finish.choice_index not in self.finishes, "a second finish"
                if frame.finish.HasField("last_delta"):
                    self._take_delta(frame.finish.last_delta)
                self.finishes[frame.finish.choice_index] = frame.finish

    def _take_delta(self, delta: pb.Delta) -> None:
        assert delta.choice_index not in self.finishes, "a delta after the finish"
        self.deltas.append(delta)
        self.texts[delta.choice_index] = self.texts.get(delta.choice_index, "") + delta.text
        self.token_ids.setdefault(delta.choice_index, []).extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)

    @property
    def usage(self) -> pb.Usage:
        (finish,) = [finish for finish in self.finishes.values() if finish.HasField("usage")]
        return finish.usage


def message(role: str, *parts: str | int) -> pb.Message:
    wire = [pb.ContentPart(text=p) if isinstance(p, str) else pb.ContentPart(media_index=p) for p in parts]
    return pb.Message(role=role, parts=wire)


def chat(
    *messages: pb.Message, images: Sequence[Image.Image] = (), max_tokens: int = 12, **fields: Any
) -> pb.GenerateRequest:
    """A greedy request, unless `fields` say otherwise."""
    media = [
        media_pb2.MediaItem(
            key=key_of(image), modality=media_pb2.MODALITY_IMAGE, form=media_pb2.MEDIA_FORM_FILE
        )
        for image in images
    ]
    sampling = fields.pop("sampling", {"temperature": 0.0})
    stopping = {"max_token_count": max_tokens} | fields.pop("stopping", {})
    return pb.GenerateRequest(
        conversation=pb.Conversation(messages=messages),
        media=media,
        sampling=pb.SamplingParameters(**sampling),
        stopping=pb.StoppingParameters(**stopping),
        **fields,
    )


def question(*parts: str | int, **fields: Any) -> pb.GenerateRequest:
    """A request of one message."""
    return chat(message("user", *parts), **fields)


class Rows:
    """Embeddings of pictures as transformers computes them, as an encoder would push them."""

    def __init__(self, folder: Path) -> None:
        self.reference = ReferenceModel(folder)

    def header_and_bytes(self, image: Image.Image) -> tuple[media_pb2.EmbeddingsHeader, bytes]:
        features = dict(self.reference.processor(images=[image], return_tensors="pt"))
        (rows,) = self.reference.image_features(features)
        grids = tuple(Grid(*(int(side) for side in grid)) for grid in features.get("image_grid_thw", ()))
        info = MediaInfo(len(rows), grids, (image.height, image.width))
        layout = TensorLayout("embeds", "float32", tuple(rows.shape))
        return header_to_wire(key_of(image), info, [layout]), rows.numpy().tobytes()

    def expected(
        self, request: pb.GenerateRequest, images: Sequence[Image.Image], count: int = 12
    ) -> list[int]:
        """The greedy answer of transformers' own generate."""
        messages = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text}
                    if part.WhichOneof("part") == "text"
                    else {"type": "image"}
                    for part in message.parts
                ],
            }
            for message in request.conversation.messages
        ]
        return self.reference.generate(self.reference.chat(messages), images, count)


class Caller:
    """Stubs of one service, and what tests do with them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.llm = pb_grpc.LlmServiceStub(channel)
        self.embeddings = embedding_grpc.EmbeddingServiceStub(channel)

    def open(self, request: pb.GenerateRequest, timeout: float = TIMEOUT_S) -> Any:
        return self.llm.Generate(request, timeout=timeout)

    async def ask(
        self, request: pb.GenerateRequest, rows: Rows | None = None, images: Sequence[Image.Image] = ()
    ) -> Answer:
        """Makes a call to its end, and has pictures delivered as they are needed."""
        answer = Answer()
        by_key = {key_of(image): image for image in images}
        async for frame in frames_of(self.open(request)):
            answer.take(frame)
            if frame.HasField("media_needed"):
                assert rows is not None
                for key in frame.media_needed.keys:
                    await self.push(*rows.header_and_bytes(by_key[key]))
        return answer

    async def push(self, header: media_pb2.EmbeddingsHeader, data: bytes, chunk: int = 4096) -> bool:
        """Pushes a whole item. Returns whether it was stored."""

        async def frames() -> AsyncIterator[embedding_pb.PutEmbeddingsRequest]:
            yield embedding_pb.PutEmbeddingsRequest(header=header)
            for start, end in chunk_ranges(len(data), chunk):
                yield chunk_frame(start, data[start:end])

        answer = await self.embeddings.PutEmbeddings(frames(), timeout=TIMEOUT_S)
        return bool(answer.stored)

    async def status(self) -> pb.GetStatusResponse:
        answer: pb.GetStatusResponse = await self.llm.GetStatus(pb.GetStatusRequest(), timeout=TIMEOUT_S)
        return answer


async def frames_of(call: Any) -> AsyncIterator[pb.GenerateResponse]:
    """The frames of a call that are still to come, also after a `read`."""
    while (frame := await call.read()) is not grpc.aio.EOF:
        yield frame


def chunk_frame(offset: int, data: bytes) -> embedding_pb.PutEmbeddingsRequest:
    chunk = tensor_pb2.TensorChunk(tensor_index=0, byte_offset=offset, data=data)
    return embedding_pb.PutEmbeddingsRequest(chunk=chunk)
