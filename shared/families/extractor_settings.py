"""The settings of a checkpoint's feature extractor, for those that transformers cannot make without torch.

Knows files. Does not know what any setting means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.errors import InvalidRequestError

_FILES = ("preprocessor_config.json", "processor_config.json")
_INNER = ("audio_processor", "feature_extractor")
"""Names of the extractor's settings inside those of a whole processor."""

KIND = "feature_extractor_type"


def read_extractor_settings(folder: Path, *kinds: str) -> dict[str, Any]:
    """The settings, in whichever file they stand.

    Args:
        kinds: names of the classes that are known.

    Raises:
        InvalidRequestError: there are none, or they are of another class.
    """
    found = next(filter(None, (_settings_in(folder / name) for name in _FILES)), None)
    if found is None:
        raise InvalidRequestError(f"{folder} has no feature extractor: {' and '.join(_FILES)} name none")
    if found[KIND] not in kinds:
        raise InvalidRequestError(f"{folder}: {KIND} is {found[KIND]!r}, not {' or '.join(kinds)}")
    return found


def _settings_in(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InvalidRequestError(f"{file} holds no JSON object")
    inner = next((found[part] for part in _INNER if isinstance(found.get(part), dict)), found)
    return dict(inner) if KIND in inner else None
