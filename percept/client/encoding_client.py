"""The half of a client that talks to encoder services: media in, embeddings back.

Knows encoders and how many items they take. Does not know prompts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from percept.client.batch import run_batch
from percept.client.encoding import Encoding, encoder_replicas
from percept.client.items import Item, ItemSettings
from percept.client.media import guess_modality, items_of
from protos.encoder.v1 import encoder_service_pb2
from shared.deadline import Deadline
from shared.errors import InvalidRequestError, PerceptError
from shared.families.catalogue import Modality

if TYPE_CHECKING:
    from percept.client.embeddings import Embeddings

MOST_AT_ONCE = 128
"""Prompts or items that run at once where nobody says otherwise, and the services take so many."""


class EncodingClient:
    """See `AsyncClient`."""

    def __init__(self, encoders: tuple[str, ...], timeout_s: float, max_concurrency: int | None) -> None:
        """
        Args:
            encoders: HOST:PORT each.
            timeout_s, max_concurrency: see `Client`.
        """
        self._encoders = encoder_replicas(encoders)
        self._encoding = Encoding(self._encoders)
        self._timeout_s = timeout_s
        self._max_concurrency = max_concurrency
        self._family: str | None = None

    async def encode(
        self,
        media: Any,
        *,
        modality: Modality | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """See `Client.encode`."""
        deadline = self._deadline(timeout_s)
        settings = ItemSettings(mm_processor_kwargs, media_io_kwargs)
        kind = modality or guess_modality(media)
        items = await asyncio.to_thread(items_of, media, kind, settings[kind], "media")
        if len(items) != 1:
            raise InvalidRequestError(
                f"{len(items)} items were given; encode_many takes several", param="media"
            )
        return await self._encode_item(items[0], kind, deadline)

    async def encode_item(
        self, item: Item, modality: Modality, *, timeout_s: float | None = None
    ) -> Embeddings:
        """Encodes an item that was made already."""
        return await self._encode_item(item, modality, self._deadline(timeout_s))

    async def _encode_item(self, item: Item, modality: Modality, deadline: Deadline) -> Embeddings:
        from percept.client.embeddings import Embeddings

        fetched = await self._encoding.fetch(item, deadline)
        if self._family is None:
            self._family = (await self._encoding.model(deadline)).family
        return Embeddings(fetched.fields(self._family, modality), modality)

    @overload
    async def encode_many(
        self,
        media: Sequence[Any],
        *,
        modality: Modality | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        progress: bool = True,
        return_errors: Literal[False] = False,
        timeout_s: float | None = None,
    ) -> list[Embeddings]: ...

    @overload
    async def encode_many(
        self,
        media: Sequence[Any],
        *,
        modality: Modality | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        progress: bool = True,
        return_errors: bool,
        timeout_s: float | None = None,
    ) -> list[Embeddings | PerceptError]: ...

    async def encode_many(
        self,
        media: Sequence[Any],
        *,
        modality: Modality | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        progress: bool = True,
        return_errors: bool = False,
        timeout_s: float | None = None,
    ) -> list[Embeddings] | list[Embeddings | PerceptError]:
        """See `Client.encode_many`."""

        async def encoded(index: int) -> Embeddings:
            try:
                return await self.encode(
                    media[index],
                    modality=modality,
                    mm_processor_kwargs=mm_processor_kwargs,
                    media_io_kwargs=media_io_kwargs,
                    timeout_s=timeout_s,
                )
            except PerceptError as error:
                error.param = f"media[{index}]" + (error.param or "").removeprefix("media")
                raise

        return await run_batch(
            len(media),
            encoded,
            concurrency=await self.encoder_concurrency(),
            title="media" if progress else None,
            return_errors=return_errors,
        )

    async def encoder_model(self, *, timeout_s: float | None = None) -> encoder_service_pb2.GetModelResponse:
        """What the encoder services serve."""
        return await self._encoding.model(self._deadline(timeout_s))

    async def encoder_concurrency(self) -> int:
        """How many items run at once: as many as the encoder services accept."""
        if self._max_concurrency is not None:
            return self._max_concurrency
        statuses = await self._encoding.status(self._deadline(None))
        room = sum(status.max_pending_item_count for status in statuses)
        return max(1, min(MOST_AT_ONCE, room))

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(self._timeout_s if timeout_s is None else timeout_s)
