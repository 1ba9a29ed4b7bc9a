"""Long recordings on their way to pieces: decoded in a worker, cut, written as files of their own.

Knows how many are in memory at once. Does not know callers' streams, nor what becomes of
the pieces.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoder_service.fair_places import FairPlaces
from encoder_service.media.messages import PIECE_STARTS, SAMPLES, SAMPLING_RATE, Job
from encoder_service.media.pool import WorkerPool
from protos.encoder.v1 import encoder_service_pb2
from shared.families.base import Features
from shared.float_wave import float_wave

_JOB = Job("file", settings="", modality="audio", wish="pieces")
_BYTES_PER_SECOND = 1024 * 1024
"""See `FairPlaces`: an hour of MP3 lets pass what is smaller and comes within the next half minute."""

_HEADER_BYTE_COUNT = len(float_wave(b"", 1))


@dataclass(frozen=True, slots=True)
class SplitRecording:
    """A decoded recording and where it is cut.

    Attributes:
        samples: mono, float32 (samples,).
        starts: the first sample of each piece.
    """

    samples: npt.NDArray[np.float32]
    sampling_rate: int
    starts: tuple[int, ...]

    def layout(self) -> encoder_service_pb2.AudioPieces:
        """What the wire says of the pieces."""
        pieces = [
            encoder_service_pb2.AudioPiece(
                start_seconds=start / self.sampling_rate,
                end_seconds=end / self.sampling_rate,
                byte_count=_HEADER_BYTE_COUNT + 4 * (end - start) if len(self.starts) > 1 else 0,
            )
            for start, end in self._places()
        ]
        return encoder_service_pb2.AudioPieces(seconds=len(self.samples) / self.sampling_rate, pieces=pieces)

    def files(self) -> Iterator[bytes]:
        """The payload of each piece; none where there is only one."""
        if len(self.starts) > 1:
            for start, end in self._places():
                data = np.ascontiguousarray(self.samples[start:end], "<f4").tobytes()
                yield float_wave(data, self.sampling_rate)

    def _places(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts, (*self.starts[1:], len(self.samples)), strict=True)


class Splitting:
    """Splits recordings in the workers of a pool."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        # An hour's samples take 230 MB until the last of them is sent.
        self._places = FairPlaces(pool.worker_count, _BYTES_PER_SECOND)

    @asynccontextmanager
    async def split(self, payload: bytes) -> AsyncIterator[SplitRecording]:
        """Decodes a recording, and holds it inside the block.

        Raises:
            PerceptError: whatever decoding refuses.
        """
        async with self._places.place(len(payload)):
            result = await self._pool.run(_JOB, payload)
            assert isinstance(result, Features), "a file becomes arrays"
            arrays = result.arrays
            starts = tuple(int(start) for start in arrays[PIECE_STARTS])
            yield SplitRecording(arrays[SAMPLES], int(arrays[SAMPLING_RATE][0]), starts)
