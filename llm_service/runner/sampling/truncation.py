"""Which tokens stay in the draw: top-k, top-p and min-p as one lowest logit per row.

A threshold depends on a row alone, so the draw of a sequence does not change
with its neighbours in the batch. Tokens that tie with the last one kept are
kept too, as transformers' top-k does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from llm_service.engine.messages import SamplingSettings
from llm_service.runner.transfer import to_device

CANDIDATES = 256
"""Likeliest tokens that are sorted first for top-p; the mass is rarely spread wider."""


def truncate(logits: torch.Tensor, settings: Sequence[SamplingSettings]) -> None:
    """Masks in place the tokens that the settings leave out.

    Args:
        logits: (rows, vocabulary), divided by temperature, greatest of each row 0.
        settings: one per row.
    """
    limited = [row for row, each in enumerate(settings) if _limits(each, logits.shape[1])]
    floors = [math.log(each.min_p) if each.min_p > 0 else -math.inf for each in settings]
    if not limited and max(floors) == -math.inf:
        return
    lowest = to_device(floors, logits.dtype, logits.device)
    if limited:
        rows = to_device(limited, torch.int64, logits.device)
        kept = _lowest_kept(logits[rows], [settings[row] for row in limited])
        lowest[rows] = torch.maximum(lowest[rows], kept)
    logits.masked_fill_(logits < lowest[:, None], -math.inf)


def _limits(settings: SamplingSettings, vocabulary_size: int) -> bool:
    return settings.top_p < 1.0 or 0 < settings.top_k < vocabulary_size


def _lowest_kept(logits: torch.Tensor, settings: list[SamplingSettings]) -> torch.Tensor:
    """Lowest logit that top-k and then top-p keep, (rows,)."""
    vocabulary_size = logits.shape[1]
    counts = [each.top_k if 0 < each.top_k < vocabulary_size else 0 for each in settings]
    width = min(vocabulary_size, max(CANDIDATES, *counts))
    values = logits.topk(width).values
    kth = _kth(values, counts)
    if all(each.top_p >= 1.0 for each in settings):
        return kth
    total = logits.exp().masked_fill_(logits < kth[:, None], 0).sum(dim=1)
    mass = to_device([each.top_p for each in settings], total.dtype, total.device) * total
    while width < vocabulary_size and not _covers(values, kth, mass):
        width = min(vocabulary_size, width * 16)
        values = logits.topk(width).values
    return torch.maximum(kth, _nucleus(values, mass, settings))


def _kth(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The top_k-th greatest value of each row; minus infinity where there is no top-k."""
    count = to_device(counts, torch.int64, values.device)
    kth = values.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
    return kth.masked_fill(count == 0, -math.inf)


def _covers(values: torch.Tensor, kth: torch.Tensor, mass: torch.Tensor) -> bool:
    """Whether the sorted values hold the mass of each row, or all that top-k keeps.

    The host reads the answer, so a step with top-p waits for the device twice:
    sorting the whole vocabulary, to be sure, takes longer than that.
    """
    last = values[:, -1]
    enough = (values.exp().sum(dim=1) >= mass) | (last < kth) | (last == -math.inf)
    return bool(enough.all())


def _nucleus(values: torch.Tensor, mass: torch.Tensor, settings: list[SamplingSettings]) -> torch.Tensor:
    """Lowest of the values that are kept: those with less than the mass before them."""
    weights = values.exp()
    before = weights.cumsum(dim=1) - weights
    inside = before < mass[:, None]
    inside[:, 0] = True
    lowest = values.masked_fill(~inside, math.inf).amin(dim=1)
    whole = to_device([each.top_p >= 1.0 for each in settings], torch.bool, values.device)
    return lowest.masked_fill(whole, -math.inf)
