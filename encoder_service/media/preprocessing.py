"""What workers preprocess with: the checkpoint's own.

Apart from the rest, because every worker imports it: it knows neither gRPC nor the
service around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.build_faults import faults_of
from shared.checkpoint import read_checkpoint
from shared.families import load_family
from shared.families.base import Preprocessor


def make_preprocessor(folder: str, part_folders: Sequence[str] = ()) -> Preprocessor:
    """Makes the preprocessor of the checkpoint in a local folder, its parts in others.

    Raises:
        InvalidRequestError: the checkpoint's files do not allow it.
    """
    with faults_of(folder, "preprocessor", "preprocessor_config.json"):
        return load_family(read_checkpoint(Path(folder), part_folders)).preprocessor()
