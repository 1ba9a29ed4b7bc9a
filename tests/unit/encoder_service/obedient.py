"""A preprocessor that does what an item's settings tell it, for tests of the worker pool."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from shared.errors import BadMediaError, InvalidRequestError
from shared.families.base import (
    AudioClip,
    EncodedItem,
    Features,
    MediaInfo,
    Modality,
    RawTensor,
    VideoClip,
)


class ObedientPreprocessor:
    """Gives the picture's mean colour, after whatever it is told to do before."""

    sampling_rate = 16_000
    most_samples = 480_000

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """Settings: sleep (seconds), kill (itself), kill_once (a file that tells it has), allocate
        (bytes), fail, refuse, report (writes its process id to a file)."""
        obey(settings)
        mean = np.asarray(picture, np.float32).mean((0, 1))
        return Features(
            MediaInfo(row_count=1, image_size=(picture.height, picture.width)),
            {"mean": mean, "pixels": np.asarray(picture)},
            token_cost=4,
        )

    def preprocess_video(self, clip: VideoClip, settings: Mapping[str, Any]) -> Features:
        """Gives the frames as they came, and what is known of them; the settings as above."""
        obey(settings)
        return Features(
            MediaInfo(row_count=len(clip.indices), image_size=clip.frames.shape[1:3], timestamps=clip.times),
            {
                "frames": clip.frames,
                "indices": np.array(clip.indices),
                "whole": np.array([clip.frame_count, clip.frames_per_second]),
                **({"sound": clip.sound.samples} if clip.sound is not None else {}),
            },
            token_cost=4,
        )

    def preprocess_audio(self, clip: AudioClip, settings: Mapping[str, Any]) -> Features:
        """Gives the samples as they came; the settings as above."""
        obey(settings)
        return Features(
            MediaInfo(row_count=1, duration=clip.duration),
            {"samples": clip.samples, "rate": np.array([clip.sampling_rate])},
            token_cost=4,
        )

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """Takes any fields as they are."""
        rows = next(iter(fields.values())).shape[0]
        return EncodedItem(MediaInfo(row_count=rows), dict(fields))


def obey(settings: Mapping[str, Any]) -> None:
    if "report" in settings:
        with open(settings["report"], "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
    if "kill_once" in settings and not os.path.exists(settings["kill_once"]):
        with open(settings["kill_once"], "w", encoding="ascii"):
            os.kill(os.getpid(), signal.SIGKILL)
    if settings.get("kill"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if settings.get("fail"):
        raise RuntimeError(f"object at {id(settings):#x} in {__file__}")
    if "unheard_of" in settings:
        raise InvalidRequestError("unknown setting", param="unheard_of")
    if settings.get("refuse"):
        raise BadMediaError("too narrow", param="image")
    if "allocate" in settings:
        np.ones(settings["allocate"], np.uint8)
    time.sleep(settings.get("sleep", 0))


def make_obedient() -> ObedientPreprocessor:
    """The factory of most tests."""
    return ObedientPreprocessor()


def make_nothing() -> ObedientPreprocessor:
    """A factory that fails as one does with a broken checkpoint."""
    raise InvalidRequestError("the checkpoint has no processor")
