"""Media parts to payload bytes with their content key, under limits.

Knows where bytes come from and how the wire names them. Does not know what they
show: the encoder service looks inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import to_json

from gateway.budget import Take
from gateway.content import EmbeddingsPart, MediaPart, MediaUrlPart
from gateway.encoded import decode_base64, decode_data_url, decode_frames, is_data_url
from gateway.errors import chosen
from gateway.fetch import Fetcher, SourceLimits
from gateway.item_settings import ItemSettings
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
from shared.settings import ModalityName
from shared.telemetry import Stopwatch

MODALITIES: Mapping[ModalityName, media_pb2.Modality.ValueType] = {
    "image": media_pb2.MODALITY_IMAGE,
    "video": media_pb2.MODALITY_VIDEO,
    "audio": media_pb2.MODALITY_AUDIO,
}
NAMES: Mapping[media_pb2.Modality.ValueType, ModalityName] = {
    value: name for name, value in MODALITIES.items()
}


@dataclass(frozen=True, slots=True)
class ResolvedItem:
    """One item, its bytes at hand.

    Attributes:
        item: key, modality, form and settings, as both services take them.
        payload: what the encoder reads.
        param: path of the part in the request, for errors.
        own_settings: fields by which the request asked for some of the settings.
    """

    item: media_pb2.MediaItem
    payload: bytes
    param: str
    own_settings: frozenset[str] = frozenset()

    @property
    def modality(self) -> ModalityName:
        """What it shows."""
        return NAMES[self.item.modality]


class MediaResolver:
    """Resolves the media parts of requests."""

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        limits: Mapping[ModalityName, SourceLimits],
        folder: Path | None,
        stages: Stages,
    ) -> None:
        """
        Args:
            limits: by modality.
            folder: whose files `file://` URLs may name.
        """
        self._fetcher = fetcher
        self._limits = limits
        self._folder = folder
        self._stages = stages

    async def resolve_all(
        self, parts: Sequence[MediaPart], settings: ItemSettings, take: Take
    ) -> list[ResolvedItem]:
        """Resolves all parts at once, in order. The first failure ends the others.

        Args:
            settings: what the items are processed with.
            take: told of the bytes that are about to be kept.

        Raises:
            PerceptError: with the failing part's path as its param.
        """
        settings = settings.among({part.modality for part in parts})
        tasks: list[asyncio.Task[ResolvedItem]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._resolve(part, settings, take)) for part in parts]
        except ExceptionGroup as group:
            raise chosen(group, PerceptError) from None
        return [task.result() for task in tasks]

    async def _resolve(self, part: MediaPart, settings: ItemSettings, take: Take) -> ResolvedItem:
        try:
            if isinstance(part, EmbeddingsPart):
                return await asyncio.to_thread(self._embeddings_item, part, take)
            return await self._file(part, settings, take)
        except OverloadedError:
            raise  # No part is to blame.
        except PerceptError as error:
            error.param = error.param or part.param
            raise

    async def _file(self, part: MediaUrlPart, settings: ItemSettings, take: Take) -> ResolvedItem:
        if is_data_url(part.url):
            return await asyncio.to_thread(self._data_item, part, settings, take)
        scheme = part.url.partition(":")[0].lower()
        limits = self._limits[part.modality]
        watch = Stopwatch()
        if scheme in ("http", "https"):
            payload = await self._fetcher.fetch(part.url, take, limits)
        elif scheme == "file":
            payload = await asyncio.to_thread(
                read_file_url, part.url, self._folder, limits.max_byte_count, take
            )
        else:
            raise InvalidRequestError("The URL must be a data, http, https or file URL.")
        self._stages.observe_stage("fetch", watch.seconds(), part.modality)
        if not payload:
            raise MediaFetchError("The media URL has no content.")
        return await asyncio.to_thread(_file_item, payload, part, settings)

    def _data_item(self, part: MediaUrlPart, settings: ItemSettings, take: Take) -> ResolvedItem:
        # Known only now; it is less than its text, which was counted with the body.
        most = self._limits[part.modality].max_byte_count
        if part.modality == "video" and (frames := decode_frames(part.url, most)) is not None:
            take(sum(map(len, frames)))
            return _frames_item(frames, part, settings)
        payload = decode_data_url(part.url, most)
        take(len(payload))
        return _file_item(payload, part, settings)

    def _embeddings_item(self, part: EmbeddingsPart, take: Take) -> ResolvedItem:
        most = self._limits[part.modality].max_byte_count
        fields = [
            media_pb2.PrecomputedField(name=name, data=_field_bytes(value, most))
            for name, value in sorted(part.fields.items())
        ]
        message = media_pb2.PrecomputedEmbeddings(fields=fields)
        if message.ByteSize() > most:
            raise MediaTooLargeError(f"The embeddings are larger than {most} bytes.")
        take(message.ByteSize())
        payload = message.SerializeToString(deterministic=True)
        return _item(payload, media_pb2.MEDIA_FORM_EMBEDDINGS, part, "")


def _field_bytes(value: str | list[object], max_byte_count: int) -> bytes:
    return decode_base64(value, max_byte_count) if isinstance(value, str) else to_json(value)


def recording_item(payload: bytes, settings: ItemSettings, param: str) -> ResolvedItem:
    """A recording whose bytes are at hand.

    Args:
        param: what errors call it.
    """
    return _file_item(payload, MediaUrlPart("audio", "", param), settings)


def _file_item(payload: bytes, part: MediaUrlPart, settings: ItemSettings) -> ResolvedItem:
    text = settings.texts.get(part.modality, "")
    return _item(payload, media_pb2.MEDIA_FORM_FILE, part, text, own_settings=settings.from_request)


def _frames_item(frames: Sequence[bytes], part: MediaUrlPart, settings: ItemSettings) -> ResolvedItem:
    message = media_pb2.FrameList(frames=frames, frames_per_second=settings.frame_rate or 0.0)
    payload = message.SerializeToString(deterministic=True)
    text = settings.frame_list_text
    return _item(payload, media_pb2.MEDIA_FORM_FRAMES, part, text, own_settings=settings.from_request)


def _item(
    payload: bytes,
    form: media_pb2.MediaForm.ValueType,
    part: MediaPart,
    settings: str,
    *,
    own_settings: frozenset[str] = frozenset(),
) -> ResolvedItem:
    modality = MODALITIES[part.modality]
    key = content_key(modality, form, settings, payload)
    item = media_pb2.MediaItem(key=key, modality=modality, form=form, settings=settings)
    return ResolvedItem(item, payload, part.param, own_settings)
