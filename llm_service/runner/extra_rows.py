"""Rows that a model takes beside its input embeddings, such as Qwen3-VL's deepstack levels.

Knows one buffer for each of the model's extra tensors. Does not know what the
model does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from llm_service.engine.batch import RowSource, ScheduledSequence
from llm_service.runner.embeddings import RowPlacer

EXTRAS_KEYWORD = "extras"
"""Forward keyword that carries the extra rows of a step."""


class ExtraRows:
    """The buffers of a model's extra tensors; none for most models.

    Args:
        widths: names and widths of the tensors.
        max_rows: most tokens of a step.
    """

    def __init__(
        self, widths: Mapping[str, int], max_rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._placers = {name: RowPlacer(max_rows, width, device, name) for name, width in widths.items()}
        self._buffers = {
            name: torch.zeros(max_rows, width, dtype=dtype, device=device) for name, width in widths.items()
        }

    def place(
        self, token_count: int, items: list[ScheduledSequence], rows: list[int], source: RowSource
    ) -> dict[str, Any]:
        """Fills the buffers for a step of `token_count` tokens.

        Returns:
            The forward keywords: nothing, where the step has no media rows.
        """
        extras: dict[str, torch.Tensor] = {}
        for name, placer in self._placers.items():
            target = self._buffers[name][:token_count]
            target.zero_()
            if placer.place(target, items, rows, source):
                extras[name] = target
        return {EXTRAS_KEYWORD: extras} if extras else {}
