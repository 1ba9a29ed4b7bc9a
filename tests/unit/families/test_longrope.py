"""Frequencies by row equal those that transformers takes for a whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalRotaryEmbedding

from shared.families.base import RowRun
from shared.families.longrope import LongRope, switch_length
from tests.families.phi4_multimodal import CONTEXT, SWITCH
from tests.unit.families.conftest import Build

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_short_and_of_long_sequences(dtype: torch.dtype, tiny: Build) -> None:
    config = AutoConfig.from_pretrained(Path(tiny("phi4_multimodal")))
    assert switch_length(config) == SWITCH
    ours, theirs = LongRope(config, CPU), Phi4MultimodalRotaryEmbedding(config)
    states = torch.zeros(1, 1, dtype=dtype)
    short = torch.arange(SWITCH)[None]
    long = torch.arange(CONTEXT)[None]
    expected_short, expected_long = theirs(states, short), theirs(states, long)

    ours.choose(())
    for got, expected in zip(ours(states, short), expected_short, strict=True):
        assert torch.equal(got, expected)
    ours.choose([RowRun(0, CONTEXT, "", True)])
    for got, expected in zip(ours(states, long), expected_long, strict=True):
        assert torch.equal(got, expected)
    ours.choose([RowRun(0, 3, "", True), RowRun(3, 2, "vision", False), RowRun(5, 1, "vision", True)])
    positions = torch.tensor([[5, 6, 7, 900, 901, 8000]])
    for got, at_short, at_long in zip(ours(states, positions), expected_short, expected_long, strict=True):
        assert torch.equal(got[0, [0, 1, 2, 5]], at_long[0, [5, 6, 7, 8000]])
        assert torch.equal(got[0, [3, 4]], at_short[0, [900, 901]])
    assert not torch.equal(expected_short[0][0, 900], expected_long[0][0, 900])
