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
        settings = read_image_settings(checkpoint)
        try:
            self._processor: Any = _pil_class(settings).from_dict(settings)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _unusable(checkpoint, error) from error

    @property
    def size(self) -> Mapping[str, int]:
        """The processor's own target size, in its own words."""
        return dict(self._processor.size)

    def attribute(self, name: str) -> Any:
        """One of the processor's own settings, None where it has no such."""
        return getattr(self._processor, name, None)

    def __call__(self, picture: Image.Image, **options: Any) -> dict[str, npt.NDArray[Any]]:
        """Returns the processor's arrays for one RGB picture, a leading axis of 1 where it adds one.

        Raises:
            BadMediaError: the picture is too thin, or the processor refuses it.
        """
        check_shape(picture)
        try:
            output = self._processor(images=picture, return_tensors="np", **options)
        except ValueError as error:
            raise BadMediaError(f"the picture cannot be processed: {error}") from error
        return {name: np.asarray(value) for name, value in output.items()}


def read_image_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of a checkpoint's image processor, in whichever file they stand.

    Raises:
        InvalidRequestError: there are none.
    """
    from transformers import BaseImageProcessor

    try:
        settings, _ = BaseImageProcessor.get_image_processor_dict(checkpoint.folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unusable(checkpoint, error) from error
    return dict(settings)


def check_shape(picture: Image.Image) -> None:
    """Raises BadMediaError for a picture that is too thin."""
    if max(picture.size) > MAX_ASPECT_RATIO * min(picture.size):
        width, height = picture.size
        raise BadMediaError(
            f"the picture is {width} x {height} pixels; one side may be at most"
            f" {MAX_ASPECT_RATIO} times the other"
        )


def _unusable(checkpoint: Checkpoint, error: Exception) -> InvalidRequestError:
    reason = " ".join(str(error).split())[:300]
    return InvalidRequestError(f"{checkpoint.folder} has no usable image processor: {reason}")


def _pil_class(settings: dict[str, Any]) -> Any:
    """The PIL class of a processor, whichever backend's name the checkpoint was saved with.

    Chosen by name: transformers' own choice falls back to the other backend
    without an error, and in some versions needs torchvision to be asked at all.
    """
    import transformers

    named = str(settings.get("image_processor_type", ""))
    name = named.removesuffix("Fast").removesuffix("Pil") + "Pil"
    if not name.endswith("ImageProcessorPil") or not hasattr(transformers, name):
        raise ValueError(f"image_processor_type is {named!r}, which has no PIL backend")
    return getattr(transformers, name)
