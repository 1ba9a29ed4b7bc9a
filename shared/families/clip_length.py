"""How much of a recording a model hears, and the refusal of what is longer.

Knows the setting by which a request has the end left out. Does not know any family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidRequestError, MediaTooLargeError
from shared.families.items import AudioClip

TRUNCATION = "truncation"
"""The setting that has a recording's end left out where it is too long, as transformers' processors do."""


def fitting_samples(
    clip: AudioClip, most_samples: int, settings: Mapping[str, Any]
) -> npt.NDArray[np.float32]:
    """The samples of a recording, at most `most_samples` of them.

    Raises:
        MediaTooLargeError: there are more, and `truncation` is not set.
        InvalidRequestError: `truncation` is neither true nor false.
    """
    cuts = settings.get(TRUNCATION, False)
    if not isinstance(cuts, bool):
        raise InvalidRequestError("expected true or false", param=TRUNCATION)
    if len(clip.samples) > most_samples and not cuts:
        raise MediaTooLargeError(
            f"the recording lasts {clip.duration:.1f} s; this model hears"
            f" {most_samples / clip.sampling_rate:g} s. Set {TRUNCATION} to have it hear the beginning"
        )
    return clip.samples[:most_samples]
