"""The encoder service from its start to its drained end.

Knows which parts there are and in which order they start and stop. Does not know
what they do.
"""

from __future__ import annotations

import asyncio
import io
import logging
import wave
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from encoder_service.admission import Admission
from encoder_service.batcher import Batcher
from encoder_service.cache import EmbeddingCache
from encoder_service.delivery import Delivery
from encoder_service.encoder import Encoder
from encoder_service.encoding import Encodings
from encoder_service.media.messages import Job
from encoder_service.media.pool import WorkerPool
from encoder_service.media.preprocessing import make_preprocessor
from encoder_service.media.sound_limits import SoundLimits
from encoder_service.media.video_limits import VideoLimits
from encoder_service.media.worker import WorkerLimits
from encoder_service.priority import yield_to_others
from encoder_service.row_stage import RowStage
from encoder_service.servicer import EncoderServicer, Parts, ServedModel
from encoder_service.settings import EncoderSettings
from encoder_service.splitting import Splitting
from encoder_service.upload import MODALITIES, UploadRules
from protos.encoder.v1 import encoder_service_pb2, encoder_service_pb2_grpc
from shared.build_faults import faults_of
from shared.checkpoint import configured_dtype, find_checkpoint
from shared.errors import BadMediaError
from shared.families import load_family
from shared.families.base import Checkpoint, Family, Features, Modality, Tower
from shared.families.load_progress import reporting_to
from shared.rpc.server import RunningServer, ServiceRegistration, build_server
from shared.stop_signals import StopSignals
from shared.telemetry import Stopwatch, configure_logging

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_MIB = 1024**2
_GIB = 1024**3

_WORKER_BASE_BYTE_COUNT = _GIB
_WORKER_PIXEL_BYTE_COUNT = 24
"""Bytes per pixel that a worker may use. Measured at most 17, for WebP of 64 million pixels."""

_WORKER_VIDEO_PIXEL_BYTE_COUNT = 6
"""Bytes per pixel of the frames that are taken. Measured 3.4 for 32 frames in 4K, which families hand on
as they are; the rest is room for a family that works on a copy."""

_WORKER_SOUND_BYTE_COUNT = 48 * 16_000
"""Bytes per second of sound that a worker may use: twelve numbers for each of 16,000 samples, of which it
keeps two while it joins what was resampled. Families that hear at other rates stay far below them."""

_BATCH_TOKEN_COUNTS = {"cpu": 256, "cuda": 16_384}
"""Patches of one run of the tower where no setting says. Cores gain nothing by batches of more (measured:
956, 959, 944 us per patch for 1, 2, 4 pictures of 144; 1,350, 1,553, 1,684 for those of 1,024), and a
picture that runs alone has its rows on their way while the next is encoded."""

_SPARE_CALLS = 64
"""Calls beyond the items' bound, so that ours speaks before gRPC's: status, health, refusals."""


async def serve(settings: EncoderSettings) -> None:
    """Loads, serves until SIGTERM or SIGINT, and drains.

    Raises:
        PerceptError: the checkpoint cannot be served, or the address not bound.
    """
    configure_logging("encoder", settings.log_level)
    yield_to_others(settings.nice)
    signals = StopSignals()
    async with running(settings) as (server, port):
        logger.info("serving on port %d", port)
        await signals.stopping.wait()
        signals.again = server.hurry
        logger.info("draining for up to %g s; a second signal ends it at once", settings.drain_grace_s)


@asynccontextmanager
async def running(settings: EncoderSettings) -> AsyncIterator[tuple[RunningServer, int]]:
    """Runs the service inside the block: serving at its start, drained at its end.

    Gives the server and its port.
    """
    stopwatch = Stopwatch()
    logger.info("loading encoder of %s", settings.model)
    checkpoint = await asyncio.to_thread(find_checkpoint, settings.model, settings.model_parts)
    async with AsyncExitStack() as stack:
        with faults_of(checkpoint.folder, "encoder"):
            family = load_family(checkpoint)
            parts, encoder = await _started_parts(stack, settings, checkpoint, family)
            logger.info("loading encoder 100 %: first items on their way")
            await _warm_up(parts.pool, encoder, family.modalities)
        names = settings.served_model_name or (settings.model,)
        model = ServedModel(names[0], family.model_type, encoder.hidden_size)
        rules = UploadRules(
            frozenset(names),
            frozenset(MODALITIES[modality] for modality in family.modalities),
            settings.max_payload_mib * _MIB,
        )
        servicer = EncoderServicer(model, rules, parts, settings.default_deadline_s)
        server = _build_server(servicer, settings)
        port = await server.start(settings.listen)
        stack.push_async_callback(server.drain, settings.drain_grace_s)
        await server.serving()
        logger.info("encoder ready after %.1f s", stopwatch.seconds())
        yield server, port


async def _started_parts(
    stack: AsyncExitStack, settings: EncoderSettings, checkpoint: Checkpoint, family: Family
) -> tuple[Parts, Encoder]:
    """Starts the workers and the tower side by side, and what stands on them."""
    factory = partial(make_preprocessor, str(checkpoint.folder), settings.model_parts)
    pool = WorkerPool(factory, settings.workers, _worker_limits(settings, family.modalities))
    stack.push_async_callback(pool.close)
    load, data_type = await asyncio.to_thread(_tower_loader, settings, checkpoint, family)
    encoder = Encoder(load, data_type, family.extra_widths())
    stack.callback(encoder.close)
    await asyncio.gather(pool.start(), encoder.start())
    batcher = Batcher(
        encoder.run,
        settings.max_batch_tokens or _BATCH_TOKEN_COUNTS[_device(settings)],
        settings.batch_wait_ms / 1000,
        lambda: encodings.earliest_coming,
    )
    cache = EmbeddingCache(int(settings.cache_gib * _GIB))
    encodings = Encodings(pool, batcher, encoder, cache)
    batcher.start()
    stack.push_async_callback(batcher.close)
    delivery = Delivery(settings.llm, _row_stage(settings))
    stack.push_async_callback(delivery.close)
    admission = Admission(settings.max_pending_items, settings.max_pending_payload_mib * _MIB)
    return Parts(admission, encodings, delivery, cache, batcher, pool, Splitting(pool)), encoder


def _row_stage(settings: EncoderSettings) -> RowStage | None:
    if settings.shared_rows is None:
        return None
    try:
        return RowStage(Path(settings.shared_rows))
    except OSError as error:
        logger.warning("rows go over connections, as --shared-rows cannot be used: %s", error)
        return None


def _worker_limits(settings: EncoderSettings, modalities: Collection[Modality]) -> WorkerLimits:
    """What one item may use of a worker."""
    pixels = {
        "image": _WORKER_PIXEL_BYTE_COUNT * settings.max_image_pixels,
        "video": _WORKER_VIDEO_PIXEL_BYTE_COUNT * settings.max_video_pixels,
    }
    # A video may have its sound with it.
    sound = int(_WORKER_SOUND_BYTE_COUNT * settings.max_audio_seconds) if "audio" in modalities else 0
    return WorkerLimits(
        time_limit_s=settings.decode_timeout_s,
        memory_byte_count=_WORKER_BASE_BYTE_COUNT
        + max(count for modality, count in pixels.items() if modality in ("image", *modalities))
        + sound,
        max_pixel_count=settings.max_image_pixels,
        video=VideoLimits(
            time_limit_s=settings.video_decode_timeout_s,
            max_duration_s=settings.max_video_seconds,
            max_frame_count=settings.max_video_frames,
            max_frame_pixel_count=settings.max_video_frame_pixels,
            max_pixel_count=settings.max_video_pixels,
            max_decoded_pixel_count=settings.max_video_decoded_pixels,
        ),
        sound=SoundLimits(
            time_limit_s=settings.audio_decode_timeout_s,
            max_duration_s=settings.max_audio_seconds,
            max_sample_count=settings.max_audio_samples,
        ),
    )


def _tower_loader(
    settings: EncoderSettings, checkpoint: Checkpoint, family: Family
) -> tuple[Callable[[], Tower], str]:
    """What loads the tower, and the element type that its embeddings will have."""
    import torch

    from shared.torch_tensors import choose_dtype

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = torch.device(_device(settings))
    dtype = choose_dtype(settings.dtype, device, configured_dtype(checkpoint))
    logger.info("loading encoder 0 %%: to %s as %s", device, dtype)
    load = partial(_load_tower, family, device, dtype, settings)
    return load, str(dtype).removeprefix("torch.")


def _load_tower(family: Family, device: torch.device, dtype: torch.dtype, settings: EncoderSettings) -> Tower:
    """Loads the tower, on our own kernels where the machine has them."""
    from shared.kernels.start import leave_cores_to, start_team

    with reporting_to(lambda done: logger.info("loading encoder %.0f %%: its weights", 100 * done)):
        tower = family.tower(device, dtype)
    team = start_team(device, dtype, settings.kernels, settings.threads, settings.shared_cores)
    if team is not None and tower.use_kernels(team):
        leave_cores_to(team)
    return tower


def _device(settings: EncoderSettings) -> str:
    import torch

    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.device


async def _warm_up(pool: WorkerPool, encoder: Encoder, modalities: Collection[Modality]) -> None:
    """Sends an item of each kind all the way, so that the first caller does not pay for what comes once."""
    if "image" in modalities:
        await _send_first(pool, encoder, Job("file", settings=""), _grey_picture())
    if "audio" in modalities:
        await _send_first(pool, encoder, Job("file", settings="", modality="audio"), _silence())


async def _send_first(pool: WorkerPool, encoder: Encoder, job: Job, payload: bytes) -> None:
    try:
        features = await pool.run(job, payload)
    except BadMediaError as error:
        # What we drew ourselves is not bad: it is how the checkpoint wants it to be taken.
        raise ValueError(f"the first {job.modality} failed: {error.message}") from error
    assert isinstance(features, Features), "a file becomes features"
    await encoder.run([features])


def _grey_picture() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (224, 224), (127, 127, 127)).save(file, "PNG")
    return file.getvalue()


def _silence() -> bytes:
    """A second of it, as WAV."""
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(16_000)
        recording.writeframes(bytes(2 * 16_000))
    return file.getvalue()


def _build_server(servicer: EncoderServicer, settings: EncoderSettings) -> RunningServer:
    name = encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name
    registration = ServiceRegistration(
        name,
        lambda server: encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server(servicer, server),
    )
    return build_server(
        [registration],
        default_deadline_s=settings.default_deadline_s,
        max_concurrent_calls=2 * settings.max_pending_items + _SPARE_CALLS,
    )
