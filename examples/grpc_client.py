"""Asks about a picture over gRPC, without a gateway: all that a gateway does, in one file.

percept encoder --model percept-tiny --listen 127.0.0.1:50051
percept llm     --model percept-tiny --listen 127.0.0.1:50052
python examples/grpc_client.py examples/shapes.png "What is in the picture?"
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import grpc

from protos.encoder.v1 import encoder_service_pb2 as encoder_pb2
from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceStub
from protos.llm.v1 import llm_service_pb2 as llm_pb2
from protos.llm.v1.llm_service_pb2_grpc import LlmServiceStub
from protos.media.v1 import media_pb2
from shared.content_key import content_key

CHUNK_SIZE = 512 * 1024
TIMEOUT_S = 60.0


def item_of(payload: bytes) -> media_pb2.MediaItem:
    """Identifies a picture by its content: equal pictures are encoded once, wherever they come from."""
    modality, form = media_pb2.MODALITY_IMAGE, media_pb2.MEDIA_FORM_FILE
    return media_pb2.MediaItem(key=content_key(modality, form, "", payload), modality=modality, form=form)


def question_about(item: media_pb2.MediaItem, question: str) -> llm_pb2.GenerateRequest:
    """One user's message: the picture, then the question. The picture's bytes are not in it."""
    parts = [llm_pb2.ContentPart(media_index=0), llm_pb2.ContentPart(text=question)]
    message = llm_pb2.Message(role="user", parts=parts)
    return llm_pb2.GenerateRequest(
        conversation=llm_pb2.Conversation(messages=[message]),
        media=[item],
        sampling=llm_pb2.SamplingParameters(temperature=0),
        stopping=llm_pb2.StoppingParameters(max_token_count=128),
    )


async def encode(
    encoder: grpc.aio.Channel, item: media_pb2.MediaItem, payload: bytes, deliver_to: str
) -> None:
    """Has the encoder turn the picture into rows and push them to the LLM."""
    call = EncoderServiceStub(encoder).Encode(timeout=TIMEOUT_S)
    header = encoder_pb2.EncodeHeader(item=item, byte_count=len(payload), delivery_address=deliver_to)
    await call.write(encoder_pb2.EncodeRequest(header=header))
    # Whatever can be refused is refused now: the bytes follow only when they are wanted.
    frame = await call.read()
    if isinstance(frame, encoder_pb2.EncodeResponse) and frame.accepted.payload_wanted:
        for start in range(0, len(payload), CHUNK_SIZE):
            await call.write(encoder_pb2.EncodeRequest(chunk=payload[start : start + CHUNK_SIZE]))
    await call.done_writing()
    while frame is not grpc.aio.EOF:
        frame = await call.read()
    if await call.code() is not grpc.StatusCode.OK:
        raise RuntimeError(f"the encoder refused the picture: {await call.details()}")


async def ask(encoder_address: str, llm_address: str, payload: bytes, question: str) -> None:
    """Writes the answer as it comes."""
    item = item_of(payload)
    async with (
        grpc.aio.insecure_channel(encoder_address) as encoder,
        grpc.aio.insecure_channel(llm_address) as llm,
        asyncio.TaskGroup() as encoding,
    ):
        async for frame in LlmServiceStub(llm).Generate(question_about(item, question), timeout=TIMEOUT_S):
            # The LLM names what it lacks; a picture that it has seen costs nothing.
            for _ in frame.media_needed.keys:
                encoding.create_task(encode(encoder, item, payload, llm_address))
            sys.stdout.write(frame.delta.text)
            sys.stdout.flush()
    print()


async def main() -> None:
    """Reads the command line and writes the answer as it comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--encoder", default="127.0.0.1:50051", help="HOST:PORT of an encoder service")
    parser.add_argument("--llm", default="127.0.0.1:50052", help="HOST:PORT of an LLM service")
    options = parser.parse_args()
    await ask(options.encoder, options.llm, options.image.read_bytes(), options.question)


if __name__ == "__main__":
    asyncio.run(main())
