"""One worker process: takes an item, decodes and preprocesses it, sends the result.

Knows its limits and that it may die at any moment. Does not know gRPC, the tower
or other items.
"""

from __future__ import annotations

import logging
import mmap
import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from encoder_service.media import messages
from encoder_service.media.picture import decode_picture
from encoder_service.media.sound_limits import SoundLimits
from encoder_service.media.video_limits import VideoLimits
from shared.errors import (
    BadMediaError,
    InvalidRequestError,
    MediaTooLargeError,
    PerceptError,
    UnsupportedMediaError,
)
from shared.families.base import (
    EncodedItem,
    Features,
    Hears,
    MediaInfo,
    Modality,
    Preprocessor,
    SamplesByRate,
    VideoClip,
)

logger = logging.getLogger(__name__)

MEDIA_IO = "media_io"
"""The key of a video's settings that says which frames are taken; the others are the family's."""

WITH_SOUND = "use_audio_in_video"
"""The key of a video's settings that says whether its sound is taken too, if it has any."""

SETTINGS_PARAM = "item.settings"

_Media = TypeVar("_Media")

_EXTRA_TIME_S = 5
"""A worker kills itself this long after its parent should have."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one item may use.

    Attributes:
        time_limit_s: seconds until the worker is killed; videos and recordings have their own.
        memory_byte_count: address space above what the worker needs when idle.
        max_pixel_count: largest picture, width x height.
        video: of a video.
        sound: of a recording, and of a video's sound.
    """

    time_limit_s: float
    memory_byte_count: int
    max_pixel_count: int
    video: VideoLimits = field(default_factory=VideoLimits)
    sound: SoundLimits = field(default_factory=SoundLimits)

    def seconds_for(self, modality: Modality) -> float:
        """Seconds that an item of this modality may take."""
        own = {"video": self.video.time_limit_s, "audio": self.sound.time_limit_s}
        return own.get(modality, self.time_limit_s)


def work(channel: socket.socket, factory: Callable[[], Preprocessor], limits: WorkerLimits) -> None:
    """Runs until the pool closes the channel. The entry point of the process."""
    # Ctrl-C goes to the whole group: the service drains and closes the channel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(ConnectionError):
        # Raised where the pool is gone and so is the reason to work.
        try:
            preprocessor = factory()
        except PerceptError as error:
            messages.send(channel, messages.from_error(error))
            return
        _limit_memory(limits.memory_byte_count)
        messages.send(channel, messages.Ready())
        _serve(channel, preprocessor, limits)


def _serve(channel: socket.socket, preprocessor: Preprocessor, limits: WorkerLimits) -> None:
    while (received := messages.receive_job(channel)) is not None:
        job, file = received
        # The default action of the alarm ends the process even inside a decoder
        # that never returns to Python, should the parent be gone.
        signal.alarm(int(limits.seconds_for(job.modality)) + _EXTRA_TIME_S)
        _answer(channel, preprocessor, job, file, limits)
        signal.alarm(0)


def _answer(
    channel: socket.socket,
    preprocessor: Preprocessor,
    job: messages.Job,
    file: int,
    limits: WorkerLimits,
) -> None:
    try:
        reply, result_file = _packed_result(preprocessor, job, file, limits)
    except Exception as fault:
        messages.send(channel, messages.from_error(_typed(fault)))
        return
    try:
        messages.send(channel, reply, result_file)
    finally:
        os.close(result_file)


def _typed(fault: Exception) -> PerceptError:
    if isinstance(fault, PerceptError):
        return fault
    if isinstance(fault, MemoryError):
        return MediaTooLargeError("the item needs more memory than a worker may use")
    # The text may hold paths and addresses: it is for the log only.
    logger.error("preprocessing failed", exc_info=fault)
    return BadMediaError("the item cannot be processed")


def _packed_result(
    preprocessor: Preprocessor, job: messages.Job, file: int, limits: WorkerLimits
) -> tuple[messages.Done, int]:
    payload = _payload(file)
    return messages.pack(_process(preprocessor, job, payload, limits))


def _payload(file: int) -> bytes:
    try:
        with mmap.mmap(file, 0, prot=mmap.PROT_READ) as mapping:
            return mapping[:]
    finally:
        os.close(file)


def _process(
    preprocessor: Preprocessor, job: messages.Job, payload: bytes, limits: WorkerLimits
) -> Features | EncodedItem:
    if job.form == "embeddings":
        from encoder_service.media.embedding_files.fields import read_fields

        return preprocessor.accept_embeddings(job.modality, read_fields(payload))
    settings = dict(messages.decoded_settings(job.settings))
    if job.modality == "video":
        rate = preprocessor.frame_rate if isinstance(preprocessor, SamplesByRate) else None
        clip = _clip(job, payload, settings.pop(MEDIA_IO, {}), limits.video, rate)
        if isinstance(preprocessor, Hears) and _wants_sound(settings):
            clip = _with_sound(clip, job, payload, preprocessor.sampling_rate, limits.sound)
        return _with_settings(preprocessor.preprocess_video, clip, settings)
    if job.form != "file":
        raise UnsupportedMediaError(f"no {job.modality} can be decoded")
    if job.modality == "audio" and job.wish == "pieces":
        return _split(preprocessor, payload, limits.sound)
    if job.modality == "audio":
        return _heard(preprocessor, payload, settings, limits.sound)
    picture = decode_picture(payload, limits.max_pixel_count)
    return _with_settings(preprocessor.preprocess_image, picture, settings)


def _clip(
    job: messages.Job, payload: bytes, settings: object, limits: VideoLimits, own_rate: float | None
) -> VideoClip:
    from encoder_service.media.video_sampling import Sampling

    if job.form == "frames":
        from encoder_service.media.frame_list import decode_frame_list

        # Whoever sends frames has chosen them.
        return decode_frame_list(payload, Sampling.of(settings, limits.max_frame_count), limits)
    from encoder_service.media.video import decode_video

    return decode_video(payload, Sampling.of(settings, limits.max_frame_count, own_rate), limits)


def _wants_sound(settings: dict[str, object]) -> bool:
    """Takes the wish for a video's sound out of its settings."""
    wish = settings.pop(WITH_SOUND, False)
    if not isinstance(wish, bool):
        raise InvalidRequestError("expected true or false", param=f"{SETTINGS_PARAM}.{WITH_SOUND}")
    return wish


def _with_sound(
    clip: VideoClip, job: messages.Job, payload: bytes, sampling_rate: int, limits: SoundLimits
) -> VideoClip:
    """The clip with its sound, where the file has a sound track."""
    from encoder_service.media.sound import decode_track

    sound = decode_track(payload, sampling_rate, limits) if job.form == "file" else None
    return replace(clip, sound=sound)


def _heard(
    preprocessor: Preprocessor, payload: bytes, settings: Mapping[str, Any], limits: SoundLimits
) -> Features:
    if not isinstance(preprocessor, Hears):
        raise UnsupportedMediaError("the model takes no audio")
    from encoder_service.media.sound import decode_sound

    clip = decode_sound(payload, preprocessor.sampling_rate, limits)
    return _with_settings(preprocessor.preprocess_audio, clip, settings)


def _split(preprocessor: Preprocessor, payload: bytes, limits: SoundLimits) -> Features:
    """The recording's samples and where it is cut, for no tower."""
    if not isinstance(preprocessor, Hears):
        raise UnsupportedMediaError("the model takes no audio")
    import numpy as np

    from encoder_service.media.sound import decode_sound
    from encoder_service.media.sound_pieces import piece_starts

    clip = decode_sound(payload, preprocessor.sampling_rate, limits)
    starts = piece_starts(clip.samples, clip.sampling_rate, preprocessor.most_samples)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        messages.SAMPLES: clip.samples,
        messages.SAMPLING_RATE: np.array([clip.sampling_rate], np.int64),
        messages.PIECE_STARTS: np.array(starts, np.int64),
    }
    return Features(MediaInfo(row_count=len(starts), duration=clip.duration), arrays, len(starts))


def _with_settings(
    preprocess: Callable[[_Media, Mapping[str, Any]], Features], media: _Media, settings: Mapping[str, Any]
) -> Features:
    """Names the settings where a family refuses them."""
    try:
        return preprocess(media, settings)
    except InvalidRequestError as error:
        if type(error) is InvalidRequestError:
            error.param = ".".join(filter(None, (SETTINGS_PARAM, error.param)))
        raise


def _limit_memory(byte_count: int) -> None:
    """Bounds the address space, so that a bomb ends in MemoryError and not in the machine's."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        page_count = int(statm.read().split()[0])
    bound = page_count * resource.getpagesize() + byte_count
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
