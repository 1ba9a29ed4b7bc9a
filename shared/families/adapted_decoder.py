"""A language model with adapters of which each is for the rows of some sequences.

Knows rows and adapters. Does not know which prompt takes which adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from shared.families.base import RowRun
from shared.families.decoder import Decoder
from shared.families.lora import attach_adapters
from shared.families.lora_files import Adapter


class AdaptedDecoder(Decoder):
    """The LLM half with its weights and adapters; see `ChoosesByRow`."""

    switch_length: int | None = None

    def __init__(
        self, module: nn.Module, text_config: Any, axes: int, adapters: Mapping[str, Adapter]
    ) -> None:
        """Args:
        adapters: by the variant that each makes.
        """
        super().__init__(module, text_config, axes)
        self.variants = frozenset(adapters)
        self._device = self._output_weight.device
        self._adapted = attach_adapters(module, adapters)

    @torch.inference_mode()
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        positions: torch.Tensor,
        *,
        runs: Sequence[RowRun] = (),
        **attention: Any,
    ) -> torch.Tensor:
        """See `LanguageModel`.

        Raises:
            ValueError: rows of a variant that the checkpoint has no adapter for.
        """
        unknown = {run.variant for run in runs} - self.variants - {""}
        if unknown:
            raise ValueError(f"there is no adapter for {', '.join(sorted(unknown))}")
        self._choose(runs)
        return super().forward(inputs_embeds, positions, **attention)

    def _choose(self, runs: Sequence[RowRun]) -> None:
        """Takes the runs of a step in."""
        self._adapted.choose(runs, self._device)
