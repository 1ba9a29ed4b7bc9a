"""A family's preprocessing and layout equal the checkpoint's own processor, picture by picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_service.text_tokenizer import TextTokenizer
from shared.families.base import Family
from tests.asking import picture
from tests.oracle import Oracle
from tests.unit.families.conftest import EVERY

CPU = torch.device("cpu")
TOLERANCE = 2e-5


@pytest.mark.parametrize("variant", EVERY)
def test_pixels_tokens_and_rows(
    variant: str, tiny: Callable[[str], Path], family: Callable[[str], Family], oracle: Oracle
) -> None:
    """Pixels are equal to the bit, prompts token for token, rows closely."""
    case, _ = EVERY[variant]
    parts = family(variant)
    preprocessor, layout, tower = parts.preprocessor(), parts.prompt_layout(), parts.tower(CPU, torch.float32)
    tokenizer = TextTokenizer.load(tiny(variant))
    for seed, size in enumerate([*case.sizes, (224, 56), (61, 150)]):
        shown = picture(seed, size)
        text = f"look: {layout.placeholder_text('image')} what is it?"
        answer = oracle.ask(case, tiny(variant), text, [shown], inputs=True, rows=True)
        features = preprocessor.preprocess_image(shown, {})
        for name, array in features.arrays.items():
            if name in answer.inputs:
                np.testing.assert_array_equal(array, answer.inputs[name], err_msg=f"{variant} {size} {name}")
        assert "pixel_values" in set(features.arrays) & set(answer.inputs)

        prompt = layout.expand(tokenizer.encode(text), [features.info])
        assert prompt.token_ids == answer.prompt_ids, f"{variant} {size}: the layout, then the processor"

        (rows,) = tower.encode([features])
        np.testing.assert_allclose(
            rows["image_embeds"].numpy(), np.concatenate(answer.rows), atol=TOLERANCE, rtol=TOLERANCE
        )
