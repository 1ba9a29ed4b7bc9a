"""What encoder and LLM services agree on to hand rows over in shared memory.

Knows names. Does not know who writes and who reads.
"""

from __future__ import annotations

import re
import uuid

FILE_METADATA = "percept-shared-rows"
"""Metadata of `PutEmbeddings`: the encoder's file, and the same again from a service that reads it."""

FILE_FORM = re.compile("rows-[0-9a-f]{32}")
"""File names in the folder that both have."""


def new_file_name() -> str:
    """A name that nobody can guess: who finds the file has the same folder."""
    return f"rows-{uuid.uuid4().hex}"
