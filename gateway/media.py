"""Media parts to payload bytes with their content key, under limits.

Knows where bytes come from and how the wire names them. Does not know what they
show: the encoder service looks inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import to_json

from gateway.budget import Take
from gateway.content import EmbeddingsPart, ImageUrlPart, MediaPart
from gateway.encoded import decode_base64, decode_data_url, is_data_url
from gateway.errors import chosen
from gateway.fetch import Fetcher
from gateway.local_files import read_file_url
from gateway.metrics import Stages
from protos.media.v1 import media_pb2
from shared.content_key import content_key
from shared.errors import (
    InvalidRequestError,
    MediaFetchError,
    MediaTooLargeError,
    OverloadedError,
    PerceptError,
)
from shared.telemetry import Stopwatch


@dataclass(frozen=True, slots=True)
class ResolvedItem:
    """One item, its bytes at hand.

    Attributes:
        item: key, modality, form and settings, as both services take them.
        payload: what the encoder reads.
        param: path of the part in the request, for errors.
    """

    item: media_pb2.MediaItem
    payload: bytes
    param: str


class MediaResolver:
    """Resolves the media parts of requests."""

    def __init__(self, fetcher: Fetcher, *, max_byte_count: int, folder: Path | None, stages: Stages) -> None:
        self._fetcher = fetcher
        self._max_byte_count = max_byte_count
        self._folder = folder
        self._stages = stages

    async def resolve_all(self, parts: Sequence[MediaPart], take: Take) -> list[ResolvedItem]:
        """Resolves all parts at once, in order. The first failure ends the others.

        Args:
            take: told of the bytes that are about to be kept.

        Raises:
            PerceptError: with the failing part's path as its param.
        """
        tasks: list[asyncio.Task[ResolvedItem]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._resolve(part, take)) for part in parts]
        except ExceptionGroup as group:
            raise chosen(group, PerceptError) from None
        return [task.result() for task in tasks]

    async def _resolve(self, part: MediaPart, take: Take) -> ResolvedItem:
        try:
            if isinstance(part, EmbeddingsPart):
                return await asyncio.to_thread(self._embeddings_item, part, take)
            return await self._picture(part, take)
        except OverloadedError:
            raise  # No part is to blame.
        except PerceptError as error:
            error.param = error.param or part.param
            raise

    async def _picture(self, part: ImageUrlPart, take: Take) -> ResolvedItem:
        if is_data_url(part.url):
            return await asyncio.to_thread(self._data_item, part, take)
        scheme = part.url.partition(":")[0].lower()
        watch = Stopwatch()
        if scheme in ("http", "https"):
            payload = await self._fetcher.fetch(part.url, take)
        elif scheme == "file":
            payload = await asyncio.to_thread(
                read_file_url, part.url, self._folder, self._max_byte_count, take
            )
        else:
            raise InvalidRequestError("The URL must be a data, http, https or file URL.")
        self._stages.observe_stage("fetch", watch.seconds())
        if not payload:
            raise MediaFetchError("The media URL has no content.")
        return await asyncio.to_thread(_file_item, payload, part.param)

    def _data_item(self, part: ImageUrlPart, take: Take) -> ResolvedItem:
        # Known only now; it is less than its text, which was counted with the body.
        payload = decode_data_url(part.url, self._max_byte_count)
        take(len(payload))
        return _file_item(payload, part.param)

    def _embeddings_item(self, part: EmbeddingsPart, take: Take) -> ResolvedItem:
        fields = [
            media_pb2.PrecomputedField(name=name, data=self._field_bytes(value))
            for name, value in sorted(part.fields.items())
        ]
        message = media_pb2.PrecomputedEmbeddings(fields=fields)
        if message.ByteSize() > self._max_byte_count:
            raise MediaTooLargeError(f"The embeddings are larger than {self._max_byte_count} bytes.")
        take(message.ByteSize())
        payload = message.SerializeToString(deterministic=True)
        return _item(payload, media_pb2.MEDIA_FORM_EMBEDDINGS, part.param)

    def _field_bytes(self, value: str | list[object]) -> bytes:
        if isinstance(value, str):
            return decode_base64(value, self._max_byte_count)
        return to_json(value)


def _file_item(payload: bytes, param: str) -> ResolvedItem:
    return _item(payload, media_pb2.MEDIA_FORM_FILE, param)


def _item(payload: bytes, form: media_pb2.MediaForm.ValueType, param: str) -> ResolvedItem:
    modality = media_pb2.MODALITY_IMAGE
    key = content_key(modality, form, "", payload)
    return ResolvedItem(media_pb2.MediaItem(key=key, modality=modality, form=form), payload, param)
