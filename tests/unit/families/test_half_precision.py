"""Every family in bfloat16 on the CPU: finite rows, finite probabilities, answers to the end."""

from __future__ import annotations

import math

import pytest
import torch

from llm_service.engine.messages import SamplingSettings
from shared.families.base import EncodedItem
from shared.torch_tensors import to_raw
from tests.families import all_cases, main_modality
from tests.items import features_of, item
from tests.laying_out import Layouter
from tests.unit.families.conftest import Build
from tests.unit.runner.driver import Checkpoint, Driver

CASES = all_cases()
CPU = torch.device("cpu")
TOKENS = 6


@pytest.mark.parametrize("model_type", CASES)
def test_bfloat16(model_type: str, tiny: Build) -> None:
    checkpoint = Checkpoint(tiny(model_type))
    parts = checkpoint.family
    case = CASES[model_type]
    features = features_of(parts.preprocessor(), item(case, 1))
    (exact,) = parts.tower(CPU, torch.float32).encode([features])
    (tensors,) = parts.tower(CPU, torch.bfloat16).encode([features])
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16, name
        error = (tensor.float() - exact[name]).abs().mean()
        assert error < 0.1 * exact[name].abs().mean(), name

    driver = Driver(checkpoint, dtype="bfloat16")
    raw = {name: to_raw(tensor) for name, tensor in tensors.items()}
    driver.rows.items["shown"] = EncodedItem(features.info, raw)
    text = f"look: {checkpoint.layout.placeholder_text(main_modality(case))} what is it?"
    prompt = Layouter(checkpoint.folder).token_ids(text, [features.info])
    sequence = driver.add(prompt, ["shown"], SamplingSettings(top_logprobs=0))
    while sequence.output_count < TOKENS:
        for token in driver.step([(sequence, 1000)]):
            assert token.failure is None
            assert token.logprob is not None and math.isfinite(token.logprob)
