"""An item on its way to embeddings: decoded, laid out, encoded part by part, kept.

Knows the order of the stages and lets identical items share one run. Does not
know callers' streams nor where embeddings go.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

from encoder_service.batcher import Batcher, Encoded
from encoder_service.cache import EmbeddingCache
from encoder_service.encoder import Encoder
from encoder_service.media.messages import Job
from encoder_service.media.pool import WorkerPool
from encoder_service.single_flight import Flight, SingleFlight
from shared.families.base import EncodedItem, MediaInfo, RawTensor
from shared.telemetry import Stopwatch
from shared.wire import TensorLayout, layouts_of


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of an item before its rows are."""

    info: MediaInfo
    tensors: tuple[TensorLayout, ...]


@dataclass(frozen=True, slots=True)
class Timings:
    """How long the stages of an item took, in seconds; 0 where it skipped one."""

    queue_seconds: float = 0.0
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    cache_hit: bool = False

    def with_run(self, encoded: Encoded) -> Timings:
        """These, and those of a run of the tower: of one more part, where there are several."""
        return replace(
            self,
            queue_seconds=self.queue_seconds + encoded.queue_seconds,
            encode_seconds=self.encode_seconds + encoded.encode_seconds,
        )


class Encoding(Protocol):
    """An item's embeddings, there or to come."""

    async def layout(self) -> Layout:
        """Waits until the layout is known.

        Raises:
            PerceptError: the item cannot be encoded.
        """
        ...

    def parts(self) -> AsyncIterator[EncodedItem]:
        """The rows as they come, in order: those of a video by groups of frames, others whole.

        May be asked for again, and then starts from the first.

        Raises:
            PerceptError: the item cannot be encoded, or not to its end.
        """
        ...

    def timings(self) -> Timings:
        """What it took, once the rows are there."""
        ...


class Kept:
    """Embeddings from the cache."""

    def __init__(self, item: EncodedItem) -> None:
        self._item = item

    async def layout(self) -> Layout:
        """The item's layout, at once."""
        return _layout_of(self._item)

    async def parts(self) -> AsyncIterator[EncodedItem]:
        """The item, at once."""
        yield self._item

    def timings(self) -> Timings:
        """Nothing but a hit."""
        return Timings(cache_hit=True)


class _Progress:
    """What a run tells while it goes on.

    Attributes:
        parts: those that are there.
        more: done when there is one more than before.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.layout: asyncio.Future[Layout] = loop.create_future()
        self.timings = Timings()
        self.parts: list[EncodedItem] = []
        self.more: asyncio.Future[None] = loop.create_future()

    def add(self, part: EncodedItem) -> None:
        """Tells of one more part."""
        self.parts.append(part)
        told, self.more = self.more, asyncio.get_running_loop().create_future()
        told.set_result(None)


class Shared:
    """Embeddings of a run, seen by one of its callers."""

    def __init__(self, flight: Flight[_Progress, EncodedItem], *, owner: bool) -> None:
        self._flight = flight
        self._owner = owner

    async def layout(self) -> Layout:
        """Waits for the layout, or for the run's failure."""
        known = self._flight.progress.layout
        await self._flight.first_of(known)
        return known.result()

    async def parts(self) -> AsyncIterator[EncodedItem]:
        """Waits for each part, or for the run's failure."""
        progress = self._flight.progress
        missing = (await self.layout()).info.row_count
        for index in itertools.count():
            if missing == 0:
                return
            if index == len(progress.parts):
                await self._flight.first_of(progress.more)
            yield progress.parts[index]
            missing -= progress.parts[index].info.row_count

    def timings(self) -> Timings:
        """The run's own for the caller who started it; those who joined only waited."""
        return self._flight.progress.timings if self._owner else Timings()


class Encodings:
    """All items in progress, over the machinery of the stages."""

    def __init__(self, pool: WorkerPool, batcher: Batcher, encoder: Encoder, cache: EmbeddingCache) -> None:
        self._pool = pool
        self._batcher = batcher
        self._encoder = encoder
        self._cache = cache
        self._flights: SingleFlight[str, _Progress, EncodedItem] = SingleFlight()
        # A place is given on only when the batcher took the features, so that
        # decoding never runs far ahead of the tower.
        self._places = asyncio.Semaphore(pool.worker_count)
        # A video's frames stay in memory until its last part is encoded, which takes long: so
        # many at a time, and each only while it is decoded holds a place that others wait for.
        self._long_places = asyncio.Semaphore(pool.worker_count)
        self._turns = itertools.count()
        self._coming: set[int] = set()

    @property
    def earliest_coming(self) -> int | None:
        """Turn of the earliest item that has not come to the tower yet, or None."""
        return min(self._coming, default=None)

    def next_turn(self) -> int:
        """Gives an item its place in line, before its payload is here."""
        return next(self._turns)

    @contextmanager
    def coming(self, turn: int) -> Iterator[None]:
        """Notes inside the block that the item of this turn is on its way to the tower."""
        self._coming.add(turn)
        try:
            yield
        finally:
            self._coming.remove(turn)

    @contextmanager
    def held(self, key: str) -> Iterator[Encoding | None]:
        """Holds the embeddings of `key` if they are kept or on their way, else gives None."""
        flight = self._flights.find(key)
        if flight is not None:
            with flight.held():
                yield Shared(flight, owner=False)
            return
        item = self._cache.get(key)
        yield None if item is None else Kept(item)

    @contextmanager
    def started(self, key: str, job: Job, payload: bytes, turn: int) -> Iterator[Encoding]:
        """Holds a run of an item whose payload is whole and matches its key.

        Several callers may upload the same item at once, so that none depends on
        another's upload: the first complete one starts the run, and the others
        join it here.
        """
        item = self._cache.peek(key)
        if item is not None:
            yield Kept(item)
            return
        progress = _Progress()
        flight = self._flights.start(key, progress, lambda: self._encode(progress, turn, key, job, payload))
        with flight.held():
            yield Shared(flight, owner=flight.progress is progress)

    async def _encode(
        self, progress: _Progress, turn: int, key: str, job: Job, payload: bytes
    ) -> EncodedItem:
        # First: who waits for a video's place must not have a decoder's.
        is_long = job.modality == "video" and job.form != "embeddings"
        async with self._long_places if is_long else nullcontext():
            answers = await self._begun(progress, turn, job, payload)
            if not isinstance(answers, EncodedItem):
                answers = await self._finished(progress, answers)
        self._cache.put(key, answers)
        return answers

    async def _begun(
        self, progress: _Progress, turn: int, job: Job, payload: bytes
    ) -> EncodedItem | list[asyncio.Future[Encoded]]:
        """Decodes an item and hands its parts to the batcher. Gives the answers, or what needs no tower."""
        stopwatch = Stopwatch()
        with self.coming(turn):
            async with self._places:
                waited = stopwatch.seconds()
                result = await self._pool.run(job, payload)
                progress.timings = Timings(waited, stopwatch.seconds() - waited)
                if isinstance(result, EncodedItem):
                    progress.layout.set_result(_layout_of(result))
                    progress.add(result)
                    return result
                progress.layout.set_result(Layout(result.info, self._encoder.layouts(result.info)))
                return await self._batcher.submit(self._encoder.split(result), turn)

    async def _finished(self, progress: _Progress, answers: Sequence[asyncio.Future[Encoded]]) -> EncodedItem:
        """Tells of each part when it is there. Gives the whole."""
        layout = progress.layout.result()
        try:
            for answer in answers:
                encoded = await answer
                assert tuple(layouts_of(encoded.item.tensors)) == self._encoder.layouts(encoded.item.info), (
                    "a tower gives what its layout promised"
                )
                progress.timings = progress.timings.with_run(encoded)
                progress.add(encoded.item)
        finally:
            # When nobody waits any more, or a part failed, the others need not run.
            for answer in answers:
                answer.cancel()
        item = joined(layout.info, progress.parts)
        assert tuple(layouts_of(item.tensors)) == layout.tensors, "parts make up the whole"
        return item


def joined(info: MediaInfo, parts: Sequence[EncodedItem]) -> EncodedItem:
    """One item of the rows of all its parts."""
    if len(parts) == 1:
        return parts[0]
    tensors = {}
    for name, first in parts[0].tensors.items():
        data = b"".join(memoryview(part.tensors[name].data).cast("B") for part in parts)
        tensors[name] = RawTensor(first.data_type, (info.row_count, *first.shape[1:]), data)
    return EncodedItem(info, tensors)


def _layout_of(item: EncodedItem) -> Layout:
    return Layout(item.info, tuple(layouts_of(item.tensors)))
