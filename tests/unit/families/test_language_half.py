"""The LLM half equals transformers' whole model at every position, embeddings given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional

from shared.families.base import MAIN_TENSOR, Family, LanguageModel
from tests.reference import ReferenceModel
from tests.unit.families.conftest import VARIANTS

CPU = torch.device("cpu")
TOLERANCE = 1e-4

GetFamily = Callable[[str], Family]
GetReference = Callable[[str], ReferenceModel]


@pytest.fixture(scope="module", autouse=True)
def attention_name() -> Iterator[str]:
    """Registers plain causal attention that insists on the caller's own argument."""
    from transformers import AttentionInterface

    def causal(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        assert mask is None
        kwargs["calls"].append(module.layer_idx)
        attended = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=kwargs["scaling"], enable_gqa=True
        )
        return attended.transpose(1, 2).contiguous(), None

    name = "families_test_causal"
    AttentionInterface.register(name, causal)
    yield name
    AttentionInterface._global_mapping.pop(name)


def run(
    model: LanguageModel, token_ids: list[int], positions: Any, rows: dict[int, dict[str, torch.Tensor]]
) -> torch.Tensor:
    """Runs a whole prompt; `rows` are an item's tensors by first position."""
    embeds = model.embed(torch.tensor(token_ids)).clone()
    extras = {name: torch.zeros(len(token_ids), width) for name, width in model.extra_widths.items()}
    for start, parts in rows.items():
        for name, part in parts.items():
            target = embeds if name == MAIN_TENSOR else extras[name]
            target[start : start + len(part)] = part
    calls: list[int] = []
    more = {"extras": extras} if rows and extras else {}
    hidden = model.forward(embeds, torch.from_numpy(positions), calls=calls, **more)
    assert calls == list(range(model.kv_layout.layer_count))
    return model.logits(hidden)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("picture_count", [0, 1, 3])
def test_logits_equal_transformers(
    variant: str,
    picture_count: int,
    attention_name: str,
    family: GetFamily,
    reference: GetReference,
    pictures: list[Image.Image],
) -> None:
    whole, parts = reference(variant), family(variant)
    shown = pictures[:picture_count]
    layout = parts.prompt_layout()
    placeholder = layout.placeholder_ids()["image"]
    text = layout.placeholder_text("image") * picture_count + "What colour is the circle?"
    token_ids = [int(token) for token in whole.tokenizer(text)["input_ids"]]
    assert token_ids.count(placeholder) == picture_count

    inputs = whole.inputs(token_ids, shown)
    with torch.no_grad():
        expected = whole.model(**inputs).logits[0]

    features = [parts.preprocessor().preprocess_image(picture, {}) for picture in shown]
    prompt = layout.expand(token_ids, [item.info for item in features])
    assert prompt.token_ids == inputs["input_ids"][0].tolist()
    encoded = parts.tower(CPU, torch.float32).encode(features) if features else []
    rows = {span.start: encoded[span.item] for span in prompt.spans}
    model = parts.language_model(CPU, torch.float32, attention_name)
    logits = run(model, prompt.token_ids, prompt.positions, rows)

    assert logits.shape == (len(prompt.token_ids), model.vocabulary_size)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes(variant: str, attention_name: str, family: GetFamily, reference: GetReference) -> None:
    parts = family(variant)
    model = parts.language_model(CPU, torch.bfloat16, attention_name)
    assert (model.hidden_size, parts.hidden_size(), parts.context_length()) == (64, 64, 2048)
    assert (model.kv_layout.layer_count, model.kv_layout.kv_head_count, model.kv_layout.head_dim) == (
        3,
        2,
        16,
    )
    assert model.vocabulary_size == reference(variant).config.get_text_config().vocab_size
    assert model.embed(torch.tensor([1])).dtype == torch.bfloat16
    assert model.logits(torch.zeros(2, 64, dtype=torch.bfloat16)).dtype == torch.float32
