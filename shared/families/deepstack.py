"""Rows of a tower's inner layers that a decoder adds behind its first layers (DeepStack).

Knows the names of such rows and how the modeling code takes them. Does not know
which layers of a tower they come from.

Source of the idea: Meng et al., "DeepStack: Deeply Stacking Visual Tokens is
Surprisingly Simple and Effective for LMMs", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from shared.families.decoder import Decoder


class DeepstackDecoder(Decoder):
    """A decoder that adds an item's further rows behind its first layers; see `LanguageModel`.

    Attributes:
        extra_widths: one entry a level, in the order of the layers.
    """

    def __init__(
        self, module: nn.Module, text_config: Any, axes: int, extra_widths: Mapping[str, int]
    ) -> None:
        super().__init__(module, text_config, axes)
        self.extra_widths = extra_widths
        # The modeling code picks the visual rows by a mask, for which a GPU must be waited for.
        # Here the rows of all other tokens are zero, so that a sum over all tokens is the same.
        self._model._deepstack_process = add_level

    @torch.inference_mode()
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        positions: torch.Tensor,
        *,
        extras: Mapping[str, torch.Tensor] | None = None,
        **attention: Any,
    ) -> torch.Tensor:
        """See `Decoder`; `extras` has one (tokens, hidden) for each level, or is None without media."""
        if extras is not None:
            attention["deepstack_visual_embeds"] = [extras[name] for name in self.extra_widths]
        return super().forward(inputs_embeds, positions, **attention)


def add_level(hidden_states: torch.Tensor, _mask: None, level: torch.Tensor) -> torch.Tensor:
    """(1, tokens, hidden) plus a level's (tokens, hidden); the modeling code's mask is not used."""
    return hidden_states + level
