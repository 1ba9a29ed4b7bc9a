"""What callers of `Encode` send: a header that is checked, then exactly its payload.

Knows the frames of the stream. Does not know what is done with the bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Literal

from protos.encoder.v1 import encoder_service_pb2
from protos.media.v1 import media_pb2
from shared.content_key import is_key
from shared.errors import (
    InvalidRequestError,
    MediaTooLargeError,
    UnknownModelError,
    UnsupportedMediaError,
)
from shared.families.base import Modality

MAX_CHUNK_BYTE_COUNT = 1024 * 1024
_MAX_SETTINGS_LENGTH = 4 * 1024
_EMPTY_FRAME_BYTE_COUNT = 1024
"""What a frame without bytes counts as, where a payload does not end."""

EncodeRequest = encoder_service_pb2.EncodeRequest
EncodeHeader = encoder_service_pb2.EncodeHeader
SplitAudioRequest = encoder_service_pb2.SplitAudioRequest
SplitAudioHeader = encoder_service_pb2.SplitAudioHeader

MODALITIES: dict[Modality, media_pb2.Modality.ValueType] = {
    "image": media_pb2.MODALITY_IMAGE,
    "video": media_pb2.MODALITY_VIDEO,
    "audio": media_pb2.MODALITY_AUDIO,
}
NAMES: dict[media_pb2.Modality.ValueType, Modality] = {value: name for name, value in MODALITIES.items()}
FORMS: dict[media_pb2.MediaForm.ValueType, Literal["file", "embeddings", "frames"]] = {
    media_pb2.MEDIA_FORM_FILE: "file",
    media_pb2.MEDIA_FORM_EMBEDDINGS: "embeddings",
    media_pb2.MEDIA_FORM_FRAMES: "frames",
}


@dataclass(frozen=True, slots=True)
class UploadRules:
    """What a header is checked against.

    Attributes:
        models: the names of the served model.
        modalities: those that the service encodes.
        max_byte_count: largest payload.
    """

    models: Collection[str]
    modalities: Collection[media_pb2.Modality.ValueType]
    max_byte_count: int

    def check(self, header: EncodeHeader) -> None:
        """Refuses what can be refused before the payload is sent.

        Raises:
            UnknownModelError, UnsupportedMediaError, MediaTooLargeError,
            InvalidRequestError.
        """
        self._check_model(header.model)
        self._check_item(header.item)
        self._check_size(header.byte_count)

    def check_recording(self, header: SplitAudioHeader) -> None:
        """Refuses a recording to be cut before it is sent.

        Raises:
            UnknownModelError, UnsupportedMediaError, MediaTooLargeError,
            InvalidRequestError.
        """
        self._check_model(header.model)
        if media_pb2.MODALITY_AUDIO not in self.modalities:
            raise UnsupportedMediaError("the model takes no audio", param="header")
        self._check_size(header.byte_count)

    def _check_model(self, model: str) -> None:
        if model and model not in self.models:
            raise UnknownModelError(f"the model {model[:200]} is not served here", param="model")

    def _check_size(self, byte_count: int) -> None:
        if byte_count < 1:
            raise InvalidRequestError("byte_count is at least 1", param="byte_count")
        if byte_count > self.max_byte_count:
            raise MediaTooLargeError(
                f"the payload has {byte_count} bytes; at most {self.max_byte_count} are accepted"
            )

    def _check_item(self, item: media_pb2.MediaItem) -> None:
        if not is_key(item.key):
            raise InvalidRequestError("a key has 64 lower-case hexadecimal digits", param="item.key")
        if item.modality == media_pb2.MODALITY_UNSPECIFIED:
            raise InvalidRequestError("the modality is missing", param="item.modality")
        if item.modality not in self.modalities:
            raise UnsupportedMediaError("the model does not take this modality", param="item.modality")
        if item.form not in FORMS:
            raise InvalidRequestError("the form is missing or unknown", param="item.form")
        if item.form == media_pb2.MEDIA_FORM_FRAMES and item.modality != media_pb2.MODALITY_VIDEO:
            raise InvalidRequestError("only a video is a list of frames", param="item.form")
        if len(item.settings.encode()) > _MAX_SETTINGS_LENGTH:
            raise InvalidRequestError("the settings are too long", param="item.settings")


async def receive_header(frames: AsyncIterator[EncodeRequest]) -> EncodeHeader:
    """Reads the first frame.

    Raises:
        InvalidRequestError: it is no header, or there is none.
    """
    async for frame in frames:
        if frame.WhichOneof("frame") == "header":
            return frame.header
        break
    raise _no_header()


async def receive_split_header(frames: AsyncIterator[SplitAudioRequest]) -> SplitAudioHeader:
    """Reads the first frame.

    Raises:
        InvalidRequestError: it is no header, or there is none.
    """
    async for frame in frames:
        if frame.WhichOneof("frame") == "header":
            return frame.header
        break
    raise _no_header()


def _no_header() -> InvalidRequestError:
    return InvalidRequestError("the first frame is the header", param="header")


async def receive_payload(
    frames: AsyncIterator[EncodeRequest] | AsyncIterator[SplitAudioRequest], byte_count: int
) -> bytes:
    """Reads chunks until the caller half-closes.

    A payload that breaks the rules is read to its end, though not kept, before it
    is refused: a refusal while a caller still sends can lose its status. One that
    does not end is refused when it is twice as long as it may be; a frame without
    bytes counts as 1 KiB.

    Returns: exactly `byte_count` bytes.

    Raises:
        InvalidRequestError: fewer or more bytes, a frame that is no chunk, a
            chunk above 1 MiB, or frames without end.
    """
    chunks: list[bytes] = []
    received, read = 0, 0
    fault: str | None = None
    async for frame in frames:
        fault = fault or _fault_of(frame)
        received += len(frame.chunk)
        read += len(frame.chunk) or _EMPTY_FRAME_BYTE_COUNT
        if read > 2 * byte_count + MAX_CHUNK_BYTE_COUNT:
            fault = fault or "the payload does not end"
            break
        if received > byte_count or fault:
            chunks.clear()
        elif frame.chunk:
            chunks.append(frame.chunk)
    if fault is None and received != byte_count:
        fault = f"the payload has {received} bytes, the header promised {byte_count}"
    if fault is not None:
        raise InvalidRequestError(fault, param="chunk")
    return b"".join(chunks)


def _fault_of(frame: EncodeRequest | SplitAudioRequest) -> str | None:
    if frame.WhichOneof("frame") != "chunk":
        return "after the header only chunks follow"
    if len(frame.chunk) > MAX_CHUNK_BYTE_COUNT:
        return f"a chunk has at most {MAX_CHUNK_BYTE_COUNT} bytes"
    return None
