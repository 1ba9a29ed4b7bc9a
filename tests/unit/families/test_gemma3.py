"""What is Gemma 3's own: pan and scan, and the words around its crops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_service.item_writer import ItemWriter
from llm_service.text_tokenizer import TextTokenizer
from shared.errors import InvalidRequestError
from shared.families.base import Family, WritesItems
from tests.asking import picture
from tests.oracle import Oracle
from tests.unit.families.conftest import EVERY

CROPS = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 30,
    "pan_and_scan_max_num_crops": 3,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


@pytest.mark.parametrize(("size", "pieces"), [((112, 84), 3), ((60, 200), 4), ((64, 64), 1)])
def test_crops_equal_the_processors(
    tiny: Callable[[str], Path],
    family: Callable[[str], Family],
    oracle: Oracle,
    size: tuple[int, int],
    pieces: int,
) -> None:
    case, _ = EVERY["gemma3"]
    parts, folder = family("gemma3"), tiny("gemma3")
    shown = picture(3, size)
    text = "<start_of_turn>user\n<start_of_image>\nWhat is it?"
    answer = oracle.ask(case, folder, text, [shown], inputs=True, processor_arguments=CROPS)
    features = parts.preprocessor().preprocess_image(shown, CROPS)
    np.testing.assert_array_equal(features.arrays["pixel_values"], answer.inputs["pixel_values"])
    assert len(features.arrays["pixel_values"]) == pieces

    tokenizer, layout = TextTokenizer.load(folder), parts.prompt_layout()
    assert isinstance(layout, WritesItems)
    writer = ItemWriter(tokenizer, layout, layout.placeholder_ids())
    written = writer.written(tokenizer.encode(text), [text], [features.info])
    prompt = layout.expand(written, [features.info])
    assert prompt.token_ids == answer.prompt_ids
    assert [span.first_row for span in prompt.spans] == [16 * piece for piece in range(pieces)]
    assert not any(span.splittable for span in prompt.spans)
    (rows,) = parts.tower(torch.device("cpu"), torch.float32).encode([features])
    assert rows["embeds"].shape == (16 * pieces, 64)


@pytest.mark.parametrize(
    "settings",
    [
        {"pan_and_scan_max_num_crops": 17},
        {"pan_and_scan_min_crop_size": 0},
        {"pan_and_scan_min_ratio_to_activate": "wide"},
        {"do_pan_and_scan": 1},
        {"max_pixels": 9},
    ],
)
def test_wrong_settings_are_refused(family: Callable[[str], Family], settings: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(settings))):
        family("gemma3").preprocessor().preprocess_image(picture(0, (60, 60)), settings)
