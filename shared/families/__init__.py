"""The model families: which there are, and the one that a checkpoint belongs to.

Importing this package imports neither torch nor transformers nor any family;
`load_family` imports the one that is asked for. The families are in `catalogue.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from shared.errors import InvalidRequestError
from shared.families.catalogue import CATALOGUE, facts_of

if TYPE_CHECKING:
    from shared.families.base import Checkpoint, Family


def supported_model_types() -> tuple[str, ...]:
    """The values of `model_type` that there is a family for."""
    return tuple(sorted(facts.model_type for facts in CATALOGUE))


def load_family(checkpoint: Checkpoint) -> Family:
    """Returns the family of a checkpoint; no weights are read yet.

    Raises:
        InvalidRequestError: the checkpoint is of no known family.
    """
    found = checkpoint.config.get("model_type")
    facts = facts_of(found) if isinstance(found, str) else None
    if facts is None:
        described = f"is a {found!r} model" if found else "names no model_type"
        raise InvalidRequestError(
            f"{checkpoint.folder} {described}; the families are {', '.join(supported_model_types())}",
            param="model",
        )
    module, name = facts.location.split(":")
    family: Family = getattr(import_module(f"shared.families.{module}"), name)(checkpoint)
    return family
