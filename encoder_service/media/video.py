"""Encoded videos to the frames that are wanted of them, with limits that hold on the way.

Knows PyAV and video files. Does not know models, nor where it runs: the caller
gives it a process that may die.

A file is read twice. First its packets are listed, which tells how many frames
there are and when each is seen, whatever the headers claim. Then only what the
wanted frames need is decoded: from the key frame before each of them on.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import av
import av.logging
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from encoder_service.media.picture import on_white
from encoder_service.media.video_container import Container, check_whole, container_of
from encoder_service.media.video_limits import VideoLimits, check_frame, check_total
from encoder_service.media.video_sampling import Sampling
from shared.errors import BadMediaError, MediaTooLargeError, PerceptError, UnsupportedMediaError
from shared.families.base import VideoClip

# Decoders that a payload can reach, libav's names. libdav1d decodes AV1; libvpx-vp9 and
# libvpx decode the transparency that libav's own decoders of VP9 and VP8 drop.
_DECODERS = (
    "h264",
    "hevc",
    "libdav1d",
    "av1",
    "vp8",
    "vp9",
    "libvpx",
    "libvpx-vp9",
    "mpeg4",
    "mpeg2video",
    "mjpeg",
    "prores",
    "gif",
)
_CODECS = frozenset({"h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mjpeg", "prores", "gif"})
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_ACCEPTED_CODECS = "H.264, HEVC, AV1, VP8, VP9, MPEG-4, MPEG-2, Motion JPEG, ProRes and GIF are accepted"

_MAX_STREAMS = 32
_MAX_FRAMES = 250_000
_MIN_RATE, _MAX_RATE = 1e-3, 1000.0
"""Frames a second that a video may claim; beyond them its clock is no clock."""
_FALLBACK_RATE = 1.0
"""Of a video that tells no times, as of a list of frames."""

_OPEN_OPTIONS = {
    # One more than accepted, to see that there are more; libav leaves the rest out, or fails.
    "max_streams": str(_MAX_STREAMS + 1),
    "codec_whitelist": ",".join(_DECODERS),
    # The file is here whole: nothing that it points to is opened.
    "protocol_whitelist": "none",
    "enable_drefs": "0",
}


VideoPacket: TypeAlias = "Packet[VideoStream]"


@dataclass(frozen=True, slots=True)
class _Index:
    """The frames of a video, in the order in which they are seen.

    Attributes:
        stamps: each one's time in the stream's own units; None where the file does
            not tell them apart.
        times: each one's time in seconds, from the first.
        rate: frames per second.
    """

    stamps: list[int] | None
    times: Sequence[float]
    rate: float

    @classmethod
    def of(cls, stamps: Sequence[int | None], unit: Fraction | None, claimed: Fraction | None) -> _Index:
        """
        Args:
            stamps: of the frames, in any order.
            unit: seconds of one unit.
            claimed: frames per second as the container says.
        """
        known = sorted(stamp for stamp in stamps if stamp is not None)
        told_apart = unit is not None and len(set(known)) == len(stamps)
        if unit is None or not told_apart:
            rate = float(claimed) if claimed and _MIN_RATE <= claimed <= _MAX_RATE else _FALLBACK_RATE
            return cls(None, [place / rate for place in range(len(stamps))], rate)
        times = [float((stamp - known[0]) * unit) for stamp in known]
        return cls(known, times, _rate(times, claimed))


def _rate(times: Sequence[float], claimed: Fraction | None) -> float:
    """Frames per second: what the container says, unless the frames' own times say otherwise.

    A claim is believed if the last frame is where it would have it, give or take one
    frame: a clock of milliseconds rounds.
    """
    believable = claimed is not None and _MIN_RATE <= claimed <= _MAX_RATE
    steps, span = len(times) - 1, times[-1]
    if steps == 0 or span <= 0:
        return float(claimed) if claimed is not None and believable else _FALLBACK_RATE
    if claimed is not None and believable and abs(float(claimed) * span - steps) <= 1:
        return float(claimed)
    return min(max(steps / span, _MIN_RATE), _MAX_RATE)


def decode_video(payload: bytes, sampling: Sampling, limits: VideoLimits) -> VideoClip:
    """Decodes the frames of an encoded video that `sampling` chooses.

    Rotation is applied, transparency is laid on white, frames of another size than
    the first one's are scaled to it.

    Args:
        payload: the file.

    Returns:
        At least one frame.

    Raises:
        MediaTooLargeError: longer, larger or costlier than allowed.
        UnsupportedMediaError: a container or codec that is not accepted.
        BadMediaError: not a video, a broken or truncated one, or one without frames.
    """
    container = container_of(payload)
    check_whole(payload, container)
    # libav's own lines are for nobody.
    av.logging.set_level(None)
    try:
        with _opened(payload, container) as opened:
            return _Reading(opened, container, sampling, limits).clip()
    except PerceptError:
        raise
    except MemoryError:
        raise _out_of_memory(payload, container) from None
    except Exception:
        # libav names addresses and inner functions: none of that leaves this module.
        raise BadMediaError("the video is broken and cannot be decoded") from None


def _opened(payload: bytes, container: Container) -> InputContainer:
    return av.open(
        io.BytesIO(payload), "r", format=container, container_options=_OPEN_OPTIONS, metadata_errors="replace"
    )


def _out_of_memory(payload: bytes, container: Container) -> MediaTooLargeError:
    """libav says that memory ran out also where streams did."""
    if container == "mov" and payload.count(b"trak") > _MAX_STREAMS:
        return _too_many_streams()
    return MediaTooLargeError("the video needs more memory than a decoder may use")


def _too_many_streams() -> MediaTooLargeError:
    return MediaTooLargeError(f"the file has too many streams; at most {_MAX_STREAMS} are accepted")


def _no_frames() -> BadMediaError:
    return BadMediaError("the video has no frames")


class _Reading:
    """One file on its way to a clip."""

    def __init__(
        self, opened: InputContainer, container: Container, sampling: Sampling, limits: VideoLimits
    ) -> None:
        self._opened = opened
        self._sampling = sampling
        self._limits = limits
        # A GIF's frames are patches on those before them, whatever they are marked as.
        self._may_skip = container != "gif"
        self._stream = self._chosen_stream()
        self._area = 0
        self._decoder = self._made_decoder()

    def clip(self) -> VideoClip:
        packets = self._packets()
        # Some packets are for decoding only, as those before an edit's start.
        index = self._index([packet.pts for packet in packets if not packet.is_discard])
        wanted = self._sampling.indices(index.times)
        frames = self._frames_by_stamp(packets, index, wanted)
        if frames is None:
            # Some packets hold no frame, or their times tell nothing: what comes out counts.
            stamps = [frame.pts for frame in self._decoded([packets])]
            if not stamps:
                raise _no_frames()
            index = self._index(stamps)
            wanted = self._sampling.indices(index.times)
            frames = self._frames_by_place(packets, wanted)
        return VideoClip(frames, tuple(wanted), len(index.times), index.rate)

    def _chosen_stream(self) -> VideoStream:
        streams = self._opened.streams
        if len(streams) > _MAX_STREAMS:
            raise _too_many_streams()
        # An attached picture is the cover of a song.
        videos = [stream for stream in streams.video if not stream.disposition & Disposition.attached_pic]
        if not videos:
            raise BadMediaError("the file has no video stream")
        return videos[0]

    def _made_decoder(self) -> VideoCodecContext:
        context = self._stream.codec_context
        name = context.codec.canonical_name if context is not None else "unknown"
        if name not in _CODECS:
            raise UnsupportedMediaError(f"{name} video is not accepted; {_ACCEPTED_CODECS}")
        check_frame(context.width, context.height, self._limits)
        self._area = context.width * context.height
        if name in _WITH_ALPHA and self._stream.metadata.get("alpha_mode") == "1":
            context = av.Codec(_WITH_ALPHA[name], "r").create("video")
        context.thread_count = 1
        context.options = {"max_pixels": str(self._limits.max_frame_pixel_count)}
        return context

    def _packets(self) -> list[VideoPacket]:
        """All packets of the stream, in decoding order."""
        packets: list[VideoPacket] = []
        for packet in self._opened.demux(self._stream):
            if packet.size == 0:
                continue
            packets.append(packet)
            if len(packets) > _MAX_FRAMES:
                raise MediaTooLargeError(f"the video has more than {_MAX_FRAMES} frames")
        if not any(not packet.is_discard for packet in packets):
            raise _no_frames()
        return packets

    def _index(self, stamps: Sequence[int | None]) -> _Index:
        index = _Index.of(stamps, self._stream.time_base, self._stream.average_rate)
        seconds = max(len(index.times) / index.rate, index.times[-1])
        if seconds > self._limits.max_duration_s:
            raise MediaTooLargeError(
                f"the video lasts {seconds:.0f} s; at most {self._limits.max_duration_s:g} s are accepted"
            )
        return index

    def _frames_by_stamp(
        self, packets: Sequence[VideoPacket], index: _Index, wanted: Sequence[int]
    ) -> npt.NDArray[np.uint8] | None:
        """The wanted frames, found by their times. None where one of them does not come out."""
        if index.stamps is None:
            return None
        slots = {index.stamps[place]: slot for slot, place in enumerate(wanted)}
        collected = _Frames(len(wanted), self._limits)
        for frame in self._decoded(self._runs(packets, slots)):
            slot = slots.pop(frame.pts, None) if frame.pts is not None else None
            if slot is not None:
                collected.put(slot, frame)
        return None if slots else collected.array()

    def _frames_by_place(
        self, packets: Sequence[VideoPacket], wanted: Sequence[int]
    ) -> npt.NDArray[np.uint8]:
        """The wanted frames, counted as they come out."""
        slots = {place: slot for slot, place in enumerate(wanted)}
        collected = _Frames(len(wanted), self._limits)
        for place, frame in enumerate(self._decoded([packets])):
            if place in slots:
                collected.put(slots[place], frame)
        return collected.array()

    def _runs(self, packets: Sequence[VideoPacket], stamps: Collection[int]) -> list[Sequence[VideoPacket]]:
        """The packets that frames of these times need, as runs that each begin with a key frame."""
        places = {packet.pts: place for place, packet in enumerate(packets) if not packet.is_discard}
        keys = [place for place, packet in enumerate(packets) if packet.is_keyframe and self._may_skip]
        bounds: list[tuple[int, int]] = []
        for last in sorted(places[stamp] for stamp in stamps):
            first = _start_of(packets, keys, last)
            if bounds and first <= bounds[-1][1] + 1:
                bounds[-1] = (bounds[-1][0], last)
            else:
                bounds.append((first, last))
        return [packets[first : last + 1] for first, last in bounds]

    def _decoded(self, runs: Sequence[Sequence[VideoPacket]]) -> Iterator[VideoFrame]:
        """Decodes runs of packets, one after the other; frames come as they are seen."""
        if self._area * sum(len(run) for run in runs) > self._limits.max_decoded_pixel_count:
            raise MediaTooLargeError(
                "too many pixels have to be decoded; send a shorter or smaller video, or ask for fewer frames"
            )
        for run in runs:
            self._decoder.flush_buffers()
            packets: Iterable[VideoPacket | None] = (*run, None)
            for packet in packets:
                yield from self._decoder.decode(packet)


def _start_of(packets: Sequence[VideoPacket], keys: Sequence[int], last: int) -> int:
    """Where decoding has to begin for the packet at `last`."""
    number = bisect_right(keys, last) - 1
    # A frame that is seen before the key frame that it follows also needs what came before that.
    if number >= 0 and _stamp(packets[last]) < _stamp(packets[keys[number]]):
        number -= 1
    return keys[number] if number >= 0 else 0


def _stamp(packet: VideoPacket) -> int:
    assert packet.pts is not None, "an index has all stamps or none"
    return packet.pts


class _Frames:
    """The array that frames are written into, made when the first one's size is known."""

    def __init__(self, count: int, limits: VideoLimits) -> None:
        self._count = count
        self._limits = limits
        self._size: tuple[int, int] | None = None
        self._array: npt.NDArray[np.uint8] | None = None

    def put(self, slot: int, frame: VideoFrame) -> None:
        """Converts a frame into its place."""
        if frame.is_corrupt:
            raise BadMediaError("the video is broken: a frame cannot be decoded whole")
        if self._size is None:
            check_frame(frame.width, frame.height, self._limits)
            check_total(self._count, frame.width, frame.height, self._limits)
            self._size = (frame.width, frame.height)
        pixels = _upright(_rgb(frame, *self._size), frame.rotation)
        if self._array is None:
            self._array = np.empty((self._count, *pixels.shape), np.uint8)
        if pixels.shape != self._array.shape[1:]:
            raise BadMediaError("the video turns its frames in the middle")
        self._array[slot] = pixels

    def array(self) -> npt.NDArray[np.uint8]:
        """All frames; every place was filled."""
        if self._array is None:
            raise _no_frames()
        return self._array


def _rgb(frame: VideoFrame, width: int, height: int) -> npt.NDArray[np.uint8]:
    form = "rgba" if _has_alpha(frame) else "rgb24"
    pixels = frame.to_ndarray(format=form, width=width, height=height, threads=1).astype(np.uint8, copy=False)
    return pixels if form == "rgb24" else np.asarray(on_white(Image.fromarray(pixels)))


def _has_alpha(frame: VideoFrame) -> bool:
    return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)


def _upright(pixels: npt.NDArray[np.uint8], angle: int) -> npt.NDArray[np.uint8]:
    """Turns a frame counter-clockwise by `angle` degrees, to the nearest quarter."""
    return np.rot90(pixels, round(angle / 90) % 4)
