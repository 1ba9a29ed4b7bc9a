"""What the workers' template process imports once, so that a new worker forks in milliseconds.

Imported there and nowhere else. Knows what preprocessors are made of.
"""

from __future__ import annotations

import PIL.Image
import transformers.image_processing_utils  # noqa: F401

PIL.Image.init()
