"""`media_io_kwargs`: how media files become pictures, as requests and the server's settings say it.

Knows names and bounds. Does not know what frames there are.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class VideoIo(_Strict):
    """Which frames of a video are taken."""

    num_frames: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(
        None, description="Most frames, spread evenly; -1 for all that the server takes."
    )
    fps: Annotated[float, Field(ge=-1, le=1e6)] | None = Field(
        None, description="One frame each 1/fps seconds; -1 for no such rule. Of a list of frames: its rate."
    )

    @field_validator("num_frames")
    @classmethod
    def _check_count(cls, value: int | None) -> int | None:
        if value == 0:
            raise PydanticCustomError("frame_count", "it is at least 1, or -1 for all")
        return value

    @field_validator("fps")
    @classmethod
    def _check_rate(cls, value: float | None) -> float | None:
        if value is not None and value <= 0 and value != -1:
            raise PydanticCustomError("frame_rate", "it is above 0, or -1 for none")
        return value

    def values(self) -> dict[str, Any]:
        """What was said, in the one form that it has in settings; {} for nothing."""
        said: dict[str, Any] = {}
        if self.num_frames is not None:
            said["num_frames"] = self.num_frames
        if self.fps is not None and self.fps > 0:
            said["fps"] = int(self.fps) if self.fps.is_integer() else self.fps
        return said


class NoIo(_Strict):
    """Of a modality that has no such settings."""


class MediaIo(_Strict):
    """By modality."""

    image: NoIo | None = None
    video: VideoIo | None = None
    audio: NoIo | None = None

    def video_values(self) -> dict[str, Any]:
        """What was said of videos; {} for nothing."""
        return self.video.values() if self.video is not None else {}
