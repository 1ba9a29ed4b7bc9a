"""Runs that must not come twice, and a last token that is given: as transformers' processors have it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import ForcedEOSTokenLogitsProcessor, NoRepeatNGramLogitsProcessor

from llm_service.engine.messages import StoppingSettings
from llm_service.engine.sequence import Sequence
from llm_service.runner.sampling.sampler import Sampler
from shared.families.token_rules import TokenRules
from tests.unit.runner.test_sampler import logits_of, make

WORDS = {1: 8, 2: 7, 3: 4, 4: 3}
"""By the length of runs: so few that runs come again, so many that some word is always left."""

FRONT = (3, 4, 3, 4, 3, 4)
"""Of another text: what comes twice in it says nothing."""


def chosen(sampler: Sampler, logits: torch.Tensor, *sequences: Sequence) -> list[int]:
    return [token.token_id for token in sampler.sample(logits.clone(), list(sequences))]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("begun", [0, 1, 2])
def test_runs_are_barred_as_in_transformers(width: int, begun: int) -> None:
    """Two answers at once, one of which is forgotten on the way and begun again."""
    barred: Any = NoRepeatNGramLogitsProcessor(width)
    sampler, dice = Sampler(), random.Random(9)
    rules = TokenRules(run_length=width, begun=begun)
    sequences = [make(number, (*FRONT, 5, 6), rules=rules) for number in (1, 2)]
    words, changed = WORDS[width], 0
    for step in range(6 if width == 1 else 40):
        logits = torch.full((2, 50), -1e9)
        logits[:, :words] = logits_of(2, seed=step, width=words)
        texts = [sequence.token_ids[len(FRONT) + 2 - begun :] for sequence in sequences]
        expected = [
            barred(torch.tensor([text], dtype=torch.long), logits[row : row + 1].clone())[0].argmax().item()
            for row, text in enumerate(texts)
        ]
        changed += expected != logits.argmax(dim=1).tolist()
        assert chosen(sampler, logits, *sequences) == expected
        for sequence in sequences:
            sequence.token_ids.append(dice.randrange(words))
        if step == 20:
            sampler.forget(2)
    assert changed


@pytest.mark.parametrize("least", [0, 4])
def test_the_last_token_is_given(least: int) -> None:
    """Even where the least length masks it, and where a run would bar it."""
    stopping = StoppingSettings(max_token_count=4, min_token_count=least, stop_token_ids=[9])
    forced: Any = ForcedEOSTokenLogitsProcessor(5, 9)
    sampler, logits = Sampler(), logits_of()
    sequence = make(1, (1,), stopping=stopping, rules=TokenRules(run_length=1, last_id=9))
    for token in (2, 9, 3):
        (got,) = chosen(sampler, logits, sequence)
        assert got != 9
        sequence.token_ids.append(token)
    assert chosen(sampler, logits, sequence) == [9]
    assert forced(torch.tensor([sequence.token_ids]), logits.clone()).argmax().item() == 9
