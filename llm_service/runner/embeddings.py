"""Embedding rows of media into a step's input embeddings.

Knows which rows a chunk overlaps. Does not know where the rows came from or
who frees them.
"""

from __future__ import annotations

import torch

from llm_service.engine.batch import RowSource, ScheduledSequence
from llm_service.engine.messages import ArenaTensor
from shared.families.base import RawTensor
from shared.torch_tensors import from_raw

MAIN_TENSOR = "image_embeds"
"""Name of the tensor whose rows stand in for placeholder tokens."""


def place_rows(
    inputs_embeds: torch.Tensor, items: list[ScheduledSequence], rows: list[int], source: RowSource
) -> None:
    """Overwrites the placeholder rows of a step's (tokens, hidden) input embeddings.

    Args:
        items: what the step computes.
        rows: first flat row of each item.
        source: embedding rows; those that the items need are there. Converted
            to the type of `inputs_embeds`.
    """
    for row, item in zip(rows, items, strict=True):
        if item.start >= item.sequence.prompt_length:
            continue
        end = item.start + item.count
        for span in item.sequence.spans:
            first, last = max(span.start, item.start), min(span.start + span.length, end)
            if first < last:
                target = inputs_embeds[row + first - item.start : row + last - item.start]
                first_row = span.first_row + first - span.start
                target.copy_(_read(source, span.key, first_row, last - first))


def _read(source: RowSource, key: str, first: int, count: int) -> torch.Tensor:
    """Rows `first` on of an item: (count, width) on the CPU."""
    tensor = _main_tensor(source, key)
    data = source.rows(key, tensor.name, first, count)
    return from_raw(RawTensor(tensor.data_type, (count, tensor.shape[1]), data))


def _main_tensor(source: RowSource, key: str) -> ArenaTensor:
    for tensor in source.tensors(key):
        if tensor.name == MAIN_TENSOR:
            return tensor
    raise AssertionError(f"no tensor {MAIN_TENSOR!r} among those of {key}")
