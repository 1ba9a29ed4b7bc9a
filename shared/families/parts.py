"""Into how many parts a video is cut, so that its first rows are there early.

Knows token costs. Does not know any family, and imports no torch.
"""

from __future__ import annotations

import itertools

PART_TOKEN_COUNTS = {"cpu": 1024, "cuda": 4096}
"""The tower's own tokens in a part. A tower on a CPU loses nothing by smaller ones, but the
prompt's steps do: each reads all of the LLM's weights for the few rows of a part. On a CPU
this is measured (`benchmarks.video_overlap`), on a GPU it is a guess."""


def part_token_count(device_type: str) -> int:
    """Tokens that a part may have on a device, above which a tower runs no faster."""
    return PART_TOKEN_COUNTS.get(device_type, PART_TOKEN_COUNTS["cuda"])


def cut_steps(step_count: int, step_token_count: int, most_tokens: int) -> list[tuple[int, int]]:
    """Groups steps that follow each other into parts of nearly even length.

    Args:
        step_count: what cannot be cut, frames or groups of them; at least 1.
        step_token_count: cost of each.
        most_tokens: cost of a part; a single step may cost more.

    Returns:
        Half-open ranges of steps, in order.
    """
    most_steps = max(1, most_tokens // step_token_count)
    part_count = -(-step_count // most_steps)
    bounds = [step_count * index // part_count for index in range(part_count + 1)]
    return list(itertools.pairwise(bounds))
