"""The special tokens that a checkpoint's tokenizer_config.json names.

Knows that file. Does not know which names a family asks for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def named_tokens(folder: Path) -> Mapping[str, str]:
    """Texts of tokens by their names, for example "image_token": those of `extra_special_tokens` count first.

    {} where there is no such file.
    """
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(settings, dict):
        return {}
    extra = settings.get("extra_special_tokens")
    found = {**settings, **(extra if isinstance(extra, dict) else {})}
    return {name: text for name, value in found.items() if name.endswith("_token") and (text := _text(value))}


def _text(value: object) -> str:
    """A token's text, which older files have in an object."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""
