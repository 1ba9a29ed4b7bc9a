"""Into which parts a video is cut."""

from __future__ import annotations

import pytest

from shared.families.parts import cut_steps, part_token_count


@pytest.mark.parametrize("steps", [1, 2, 7, 16, 100])
@pytest.mark.parametrize("cost", [1, 3, 64, 300])
def test_parts_cover_all_steps_in_order_within_the_bound(steps: int, cost: int) -> None:
    parts = cut_steps(steps, cost, 256)
    assert [step for start, end in parts for step in range(start, end)] == list(range(steps))
    lengths = [end - start for start, end in parts]
    assert max(lengths) * cost <= max(256, cost)
    assert max(lengths) - min(lengths) <= 1
    # No more parts than the bound asks for.
    assert len(parts) == -(-steps // max(1, 256 // cost))


def test_a_device_that_is_not_known_counts_as_a_fast_one() -> None:
    assert part_token_count("cpu") < part_token_count("cuda") == part_token_count("xpu")
