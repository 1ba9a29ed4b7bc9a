"""What the workers' template process imports once, so that a new worker forks in milliseconds.

Imported there and nowhere else. Knows what workers are made of; a model's own
processor is imported by each worker, which is quick on top of this.
"""

from __future__ import annotations

import os
import sys


def _import_all() -> None:
    # Preprocessing needs no torch, and transformers does without where there is
    # none: measured 62 MB instead of 294 MB a worker, and a quarter of the start.
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"

    import PIL.Image
    import transformers.image_processing_utils  # noqa: F401

    import encoder_service.media.embedding_files.fields
    import encoder_service.media.frame_list
    import encoder_service.media.preprocessing
    import encoder_service.media.sound
    import encoder_service.media.sound_track
    import encoder_service.media.video
    import encoder_service.media.worker  # noqa: F401

    PIL.Image.init()


_import_all()
