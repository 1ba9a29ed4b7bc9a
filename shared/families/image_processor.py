"""The checkpoint's own Hugging Face image processor, always on its PIL backend.

Knows how to load and call it. Does not know what a family makes of the pixels.
One backend on every machine, because the backends differ in their pixels: the
same picture would otherwise get other embeddings under the same key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.errors import BadMediaError, InvalidRequestError
from shared.families.base import Checkpoint

MAX_ASPECT_RATIO = 200
"""Longer side over shorter. Resizing a thinner picture by its shorter side would
make an enormous one."""


class ImageProcessor:
    """Pictures to arrays.

    Raises (from the constructor):
        InvalidRequestError: the checkpoint has no image processor that works
            on PIL pictures.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        from transformers import AutoImageProcessor

        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(
                checkpoint.folder, backend="pil", local_files_only=True
            )
        except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InvalidRequestError(
                f"{checkpoint.folder} has no usable image processor: {reason}"
            ) from error
        if not type(self._processor).__name__.endswith("Pil"):
            name = type(self._processor).__name__
            raise InvalidRequestError(f"{checkpoint.folder}: {name} has no PIL backend")

    @property
    def size(self) -> Mapping[str, int]:
        """The processor's own target size, in its own words."""
        return dict(self._processor.size)

    def __call__(self, picture: Image.Image, **options: Any) -> dict[str, npt.NDArray[Any]]:
        """Returns the processor's arrays for one RGB picture, a leading axis of 1 where it adds one.

        Raises:
            BadMediaError: the picture is too thin, or the processor refuses it.
        """
        if max(picture.size) > MAX_ASPECT_RATIO * min(picture.size):
            width, height = picture.size
            raise BadMediaError(
                f"the picture is {width} x {height} pixels; one side may be at most"
                f" {MAX_ASPECT_RATIO} times the other"
            )
        try:
            output = self._processor(images=picture, return_tensors="np", **options)
        except ValueError as error:
            raise BadMediaError(f"the picture cannot be processed: {error}") from error
        return {name: np.asarray(value) for name, value in output.items()}
