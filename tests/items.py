"""Items of every modality to ask a family about, and what its preprocessor makes of them.

Knows the sizes that a family's row gives. Does not know any family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from shared.families.base import AudioClip, Features, Hears, Preprocessor, VideoClip
from shared.families.catalogue import Modality
from tests.asking import moving_picture, picture, sound
from tests.families import main_modality
from tests.families.case import FamilyCase
from tests.oracle import Media, Recording, Video


def item(case: FamilyCase, seed: int, which: int = 0, modality: Modality | None = None) -> Media:
    """An item, another for each seed.

    Args:
        which: of the row's two sizes or durations.
        modality: None: the family's main one.
    """
    modality = modality or main_modality(case)
    if modality == "audio":
        return recording(case, seed, which)
    return video(case, seed) if modality == "video" else picture(seed, case.sizes[which])


def video(case: FamilyCase, seed: int) -> Video:
    """Frames of one picture that changes, two a second."""
    return Video(moving_picture(seed, case.video_size, case.video_frames), fps=2.0)


def sounding_video(case: FamilyCase, seed: int) -> Video:
    """A video with a recording of its length."""
    silent = video(case, seed)
    seconds = len(silent.frames) / silent.fps
    return replace(silent, sound=Recording(sound(seed, seconds)))


def recording(case: FamilyCase, seed: int, which: int = 0) -> Recording:
    """Tones that come and go."""
    return Recording(sound(seed, case.durations[which]))


def modality_of(shown: Media) -> Modality:
    """What an item is."""
    return "audio" if isinstance(shown, Recording) else "video" if isinstance(shown, Video) else "image"


def features_of(
    preprocessor: Preprocessor, shown: Media, settings: Mapping[str, Any] = MappingProxyType({})
) -> Features:
    """What the family makes of an item."""
    if isinstance(shown, Recording):
        assert isinstance(preprocessor, Hears), "the family does not hear"
        assert shown.rate == preprocessor.sampling_rate, "the oracle resamples nothing"
        return preprocessor.preprocess_audio(AudioClip(shown.samples, shown.rate), settings)
    if isinstance(shown, Video):
        count = len(shown.frames)
        heard = AudioClip(shown.sound.samples, shown.sound.rate) if shown.sound is not None else None
        clip = VideoClip(shown.frames, tuple(range(count)), count, shown.fps, heard)
        return preprocessor.preprocess_video(clip, settings)
    return preprocessor.preprocess_image(shown, settings)
