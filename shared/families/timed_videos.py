"""Videos whose groups of frames have a time each, and whose frames share one budget of pixels.

As in Qwen3-VL and GLM-4V. Knows what differs from Qwen2-VL's videos. Does not know
how times are written (`timed_layout.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.base import Checkpoint, EncodedItem, Features, Grid, Modality, RawTensor, VideoClip
from shared.families.embeddings import check_fields, read_seconds
from shared.families.qwen2_vl import FIELDS, FRAMES, Qwen2VLPreprocessor

TIMES = "timestamps"

GroupTimes = Callable[[tuple[float, ...]], tuple[float, ...]]
"""Times of frames, as many as groups have together, to times of groups; as exact as they are written."""


class TimedVideoPreprocessor(Qwen2VLPreprocessor):
    """Pictures, videos and precomputed embeddings; see `Preprocessor`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Any,
        video_defaults: Mapping[str, Any],
        depth: int,
        group_times: GroupTimes,
    ) -> None:
        """Reads the checkpoint's settings.

        Args:
            depth: frames of a group that `group_times` counts with.

        Raises:
            InvalidRequestError: as Qwen2-VL's, or the tower's groups have another depth.
        """
        super().__init__(checkpoint, config, video_defaults)
        found = int(config.vision_config.temporal_patch_size)
        if found != depth:
            raise InvalidRequestError(f"{checkpoint.folder}: groups of {found} frames are not served")
        self._group_times = group_times
        self._depth = depth

    def preprocess_video(self, clip: VideoClip, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. The frames stay as they are; the tower resizes them.

        A single frame counts as a whole group, where transformers refuses it.

        Settings: as for pictures, but of all frames together.
        """
        count, height, width, _ = clip.frames.shape
        side = int(self._vision.patch_size)
        factor = side * self._merge_size
        bounds = self._frame_bounds.narrowed(settings)
        if self._videos.get("cap_pixels_per_frame"):
            bounds = bounds.capped(count, int(self._videos["max_video_tokens"]) * factor**2)
        fitting = bounds.fit_clip(max(count, self._depth), height, width, factor, self._depth)
        missing = -count % self._depth
        features = self._features(
            Grid((count + missing) // self._depth, *(length // side for length in fitting)),
            (height, width),
            {FRAMES: clip.frames},
        )
        times = self._group_times(clip.times + clip.times[-1:] * missing)
        features.info = replace(features.info, timestamps=times)
        return features

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: as for Qwen2-VL, and of videos `timestamps`: of each group of frames the
        seconds that the prompt is to say, (n,).
        """
        check_fields(fields, required=self._required(modality), optional=())
        return self._accepted(modality, fields)

    def _required(self, modality: Modality) -> tuple[str, ...]:
        return (*FIELDS[modality], TIMES) if modality == "video" else FIELDS[modality]

    def _accepted(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        item = super()._accepted(modality, fields)
        if modality == "video":
            times = read_seconds(TIMES, fields[TIMES])
            group_count = sum(grid.time for grid in item.info.grids)
            if len(times) != group_count:
                raise BadEmbeddingsError(
                    f"{TIMES} has {len(times)} times; the grids have {group_count} groups of frames",
                    param=TIMES,
                )
            item.info = replace(item.info, timestamps=times)
        return item
