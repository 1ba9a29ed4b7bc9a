"""What streamed rows can gain at most, from measured parts."""

from __future__ import annotations

import pytest

from benchmarks.overlap import Sample, overlap_figures

SAMPLES = {
    "one": [Sample(1.0, 0.4)],
    "streamed": [Sample(1.75, 0.7)],
    "held": [Sample(2.0, 0.65)],
}


@pytest.mark.parametrize(("encode_s", "hidden_s"), [(0.7, 0.25), (0.1, 0.1)])
def test_no_more_is_hidden_than_the_first_picture_adds_to_prefill_or_the_second_takes_to_encode(
    encode_s: float, hidden_s: float
) -> None:
    figures = overlap_figures(SAMPLES, encode_s)
    assert figures["ideal_ratio"] == pytest.approx((2.0 - hidden_s) / 2.0)
    assert figures["ratio"]["p50"] == pytest.approx(1.75 / 2.0)
