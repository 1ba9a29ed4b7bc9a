"""Prompt layouts that know tokens by their text and by an id that another file gives.

Knows the shape of the contract. Knows no model and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from shared.families.base import PromptLayout


@runtime_checkable
class NamesTokens(PromptLayout, Protocol):
    """A `PromptLayout` that writes some tokens as text and finds them again by their ids."""

    def named_tokens(self) -> Mapping[str, int]:
        """The id that each of these texts must have in the tokenizer."""
        ...
