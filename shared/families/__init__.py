"""The model families: which there are, and the one that a checkpoint belongs to.

Importing this package imports neither torch nor transformers nor any family;
`load_family` imports the one that is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from shared.errors import InvalidRequestError

if TYPE_CHECKING:
    from shared.families.base import Checkpoint, Family

_FAMILIES: dict[str, tuple[str, str]] = {
    "llava": ("shared.families.llava", "LlavaFamily"),
    "qwen2_5_vl": ("shared.families.qwen2_5_vl", "Qwen25VLFamily"),
    "qwen2_vl": ("shared.families.qwen2_vl", "Qwen2VLFamily"),
}
"""Module and class by the checkpoint's `model_type`."""


def supported_model_types() -> tuple[str, ...]:
    """The values of `model_type` that there is a family for."""
    return tuple(sorted(_FAMILIES))


def load_family(checkpoint: Checkpoint) -> Family:
    """Returns the family of a checkpoint; no weights are read yet.

    Raises:
        InvalidRequestError: the checkpoint is of no known family.
    """
    found = checkpoint.config.get("model_type")
    if found not in _FAMILIES:
        described = f"is a {found!r} model" if found else "names no model_type"
        raise InvalidRequestError(
            f"{checkpoint.folder} {described}; the families are {', '.join(supported_model_types())}",
            param="model",
        )
    module, name = _FAMILIES[found]
    family: Family = getattr(import_module(module), name)(checkpoint)
    return family
