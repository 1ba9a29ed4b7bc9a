"""The families under test: one module each, found by being here.

A module exports `CASE`, a `FamilyCase` (see `case.py`). Pieces that several of
them share are in `parts/`. Importing this imports neither torch nor transformers.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from shared.families.catalogue import Modality
from tests.families.case import FamilyCase

_NO_FAMILIES = ("case",)


@cache
def all_cases() -> dict[str, FamilyCase]:
    """Every family's case by its `model_type`."""
    modules = (
        import_module(f"{__name__}.{found.name}")
        for found in pkgutil.iter_modules(__path__)
        if not found.ispkg and found.name not in _NO_FAMILIES
    )
    return {module.CASE.model_type: module.CASE for module in modules}


def all_variants() -> dict[str, tuple[FamilyCase, str]]:
    """Every kind of checkpoint: case and variant by "MODEL_TYPE" or "MODEL_TYPE_VARIANT"."""
    return {
        "_".join(filter(None, (name, variant))): (case, variant)
        for name, case in all_cases().items()
        for variant in case.variants
    }


def takes_videos(case: FamilyCase) -> bool:
    """Says whether the family serves videos."""
    return "video" in case.facts.modalities


def takes(case: FamilyCase, modality: Modality) -> bool:
    """Says whether the family serves items of a modality."""
    return modality in case.facts.modalities


def main_modality(case: FamilyCase) -> Modality:
    """What a family is asked about that may be asked about anything: pictures where it takes them."""
    return case.facts.modalities[0]


def cases_with(modality: Modality) -> list[str]:
    """The families that serve items of a modality, by their `model_type`."""
    return [name for name, case in all_cases().items() if takes(case, modality)]
