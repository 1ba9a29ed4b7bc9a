"""The decoder on our CPU kernels: which models it takes, and that it computes what they mean."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from llm_service.engine.messages import SamplingSettings
from llm_service.runner.attention.registration import ATTENTION_NAME, register_attention
from llm_service.runner.cpu.decoder import CpuDecoder
from llm_service.runner.cpu.weights import obstacle, take_weights
from shared.checkpoint import read_checkpoint
from shared.families import load_family
from shared.families.decoder import Decoder
from shared.kernels.build import built_library
from shared.kernels.library import Library
from tests.checkpoints import build_tiny
from tests.families.parts.weights import randomise
from tests.unit.runner.conftest import Tinies, Tiny, make_tiny
from tests.unit.runner.driver import Checkpoint, Driver, settings_for
from tests.unit.runner.test_equality import CASES, COUNT, _add, _add_prompt

pytestmark = pytest.mark.usefixtures("needs_compiler")
CPU = torch.device("cpu")


def is_on_kernels(driver: Driver) -> bool:
    return isinstance(driver.runner._model, CpuDecoder)


def check_answers(tiny: Tiny) -> None:
    """Alone, all at once, and in chunks."""
    pairs = [_add(tiny, case) for case in CASES]
    for sequence, expected in pairs:
        assert tiny.driver.generate([sequence], COUNT) == [expected]
    for chunk in (1000, 7):
        again = [_add_prompt(tiny, case) for case in CASES]
        assert tiny.driver.generate(again, COUNT, chunk) == [expected for _, expected in pairs]


def test_the_families_are_on_kernels(tiny: Tiny) -> None:
    """Otherwise the tests of equality would show nothing about them."""
    assert is_on_kernels(tiny.driver) == (tiny.driver.settings.kernels == "auto")


VARIANTS: list[dict[str, Any]] = [
    {"model_type": "llava", "text": "mistral"},
    {"model_type": "llava", "text": "qwen2"},
    {"model_type": "llava", "text": "llama", "tie": True},
    {"model_type": "qwen2_vl", "tie": False},
    {"model_type": "qwen2_5_vl", "tie": False},
    {"model_type": "qwen2_5_omni"},
    {"model_type": "qwen3_vl"},
    {"model_type": "llava", "text": "qwen3"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_text_models(variant: dict[str, Any], tmp_path: Path) -> None:
    tiny = make_tiny(build_tiny(folder=tmp_path, **variant))
    assert is_on_kernels(tiny.driver)
    check_answers(tiny)


def with_text_config(folder: Path, **changes: Any) -> Path:
    """A tiny LLaVA of another text configuration, with weights of its shapes."""
    build_tiny("llava", folder)
    config = AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config.text_config, name, value)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    randomise(model, 3, quiet_ids=[])
    model.save_pretrained(folder)
    return folder


ROTATIONS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 3.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("kind", ROTATIONS)
def test_stretched_rotations(kind: str, tmp_path: Path) -> None:
    parameters = {"rope_type": kind, "rope_theta": 1e4, **ROTATIONS[kind]}
    tiny = make_tiny(with_text_config(tmp_path, rope_parameters=parameters))
    assert is_on_kernels(tiny.driver)
    check_answers(tiny)


def test_biases_everywhere_and_wide_heads(tmp_path: Path) -> None:
    """A head width that is not hidden / heads, widths that are no multiples of a panel."""
    changes = {"attention_bias": True, "mlp_bias": True, "head_dim": 20, "intermediate_size": 90}
    tiny = make_tiny(with_text_config(tmp_path, **changes))
    assert is_on_kernels(tiny.driver)
    check_answers(tiny)


OBSTACLES: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({"hidden_act": "gelu"}, "the activation is gelu"),
    "rotation": (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "the rotary embedding is of type dynamic",
    ),
    "odd width": ({"intermediate_size": 97}, "a width is odd: 97"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_other_models_stay_with_torch(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says why, and the answers are right."""
    changes, reason = OBSTACLES[name]
    folder = with_text_config(tmp_path, **changes)
    with caplog.at_level(logging.INFO):
        tiny = make_tiny(folder)
    assert not is_on_kernels(tiny.driver)
    assert f"torch computes this model: {reason}" in caplog.text
    sequence, expected = _add(tiny, CASES[1])
    assert tiny.driver.generate([sequence], COUNT) == [expected]


def load_decoder(folder: Path) -> Decoder:
    register_attention()
    decoder = load_family(read_checkpoint(folder)).language_model(CPU, torch.float32, ATTENTION_NAME)
    assert isinstance(decoder, Decoder)
    return decoder


def test_unknown_structures_are_obstacles(tinies: Tinies) -> None:
    decoder = load_decoder(tinies("llava").checkpoint.folder)
    model: Any = decoder.module.model
    assert obstacle(decoder) is None
    model.layers[1].self_attn.register_parameter("sinks", torch.nn.Parameter(torch.ones(16)))
    assert obstacle(decoder) == "layers hold self_attn.sinks"
    model.__class__ = type("GemmaModel", (type(model),), {})
    assert obstacle(decoder) == "GemmaModel is not one of the known structures"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"kernels": "torch"}, ""), ({"dtype": "float16"}, "there are no kernels for torch.float16")],
    ids=str,
)
def test_settings_that_mean_torch(
    tinies: Tinies, changes: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        driver = Driver(tinies("llava").checkpoint, **changes)
    assert not is_on_kernels(driver)
    assert reason in caplog.text
    prompt = tinies("llava").prompt(0, "hello")
    assert len(driver.generate([driver.add(prompt)], 3)[0]) == 3


@pytest.mark.parametrize("tie", [True, False])
def test_ids_outside_the_vocabulary_are_refused(tie: bool, tmp_path: Path) -> None:
    """The kernel would read beyond the matrix."""
    model = Driver(Checkpoint(build_tiny("qwen2_vl", tmp_path, tie=tie))).runner._model
    assert isinstance(model, CpuDecoder)
    for ids in ([model.vocabulary_size], [3, -1], [2**40, 0]):
        with pytest.raises(IndexError, match="outside the vocabulary"):
            model.embed(torch.tensor(ids))
    assert model.embed(torch.tensor([0, model.vocabulary_size - 1])).shape == (2, 64)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "llava"])
def test_rows_of_the_embedding_are_the_checkpoints(model_type: str, tinies: Tinies) -> None:
    """Tied, they come out of the packed output layer."""
    tiny = tinies(model_type)
    ids = torch.randint(0, tiny.driver.runner._model.vocabulary_size, (50,))
    wanted = tiny.reference.model.get_input_embeddings()(ids)
    assert torch.equal(tiny.driver.runner._model.embed(ids), wanted)


def distribution(driver: Driver, prompt: list[int]) -> dict[int, float]:
    sequence = driver.add(prompt, ["p0"], SamplingSettings(top_logprobs=500))
    (token,) = driver.step([(sequence, 1000)])
    assert token.top is not None
    return dict(token.top)


@pytest.mark.parametrize("threads", [2, 4])
def test_several_threads(threads: int, tinies: Tinies) -> None:
    tiny = tinies("qwen2_vl")
    driver = Driver(tiny.checkpoint, threads=threads)
    driver.rows = tiny.driver.rows
    assert is_on_kernels(driver)
    assert torch.get_num_threads() == 1  # torch's own threads keep off the team's cores
    check_answers(replace(tiny, driver=driver))


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_bfloat16_is_as_close_as_torchs(model_type: str, tinies: Tinies) -> None:
    tiny = tinies(model_type)
    prompt = tiny.prompt(1, "what is this?")
    exact = distribution(tiny.driver, prompt)
    errors = []
    for kernels in ("auto", "torch"):
        driver = Driver(tiny.checkpoint, dtype="bfloat16", kernels=kernels)
        driver.rows = tiny.driver.rows
        assert is_on_kernels(driver) == (kernels == "auto")
        rounded = distribution(driver, prompt)
        common = exact.keys() & rounded.keys()
        errors.append(sum(abs(exact[token] - rounded[token]) for token in common) / len(common))
    assert 0 < errors[0] < 1.5 * errors[1]


def tensor_bytes() -> int:
    """Of all tensors that live, shared memory counted once."""
    gc.collect()
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in gc.get_objects()
        if issubclass(type(each), torch.Tensor) and each.layout == torch.strided
    }
    return sum(storages.values())


@pytest.mark.parametrize("tie", [True, False])
def test_weights_are_held_once(tie: bool, tmp_path: Path) -> None:
    """The originals are let go, in the original's place only norms and biases are left."""
    folder = build_tiny("qwen2_vl", tmp_path, tie=tie)
    team = Library(built_library()).make_team(1)
    before = tensor_bytes()
    decoder = load_decoder(folder)
    loaded = tensor_bytes() - before
    weights = take_weights(decoder, team)
    del decoder
    held = tensor_bytes() - before
    assert (weights.embedding is None) == tie
    assert 0.9 * loaded < held < 1.1 * loaded


def test_the_largest_step_and_one_token_share_a_program(tinies: Tinies) -> None:
    """The step's memory is taken once, for the largest one; counts change between steps."""
    tiny = tinies("qwen2_vl")
    settings = settings_for(tiny.checkpoint.folder)
    words = tiny.prompt(0, "one two three four five six seven eight nine ten " * 40)[:500]
    pair = [tiny.driver.add(words), tiny.driver.add(words)]
    assert 2 * len(words) <= settings.max_num_batched_tokens
    first = tiny.driver.generate(pair, 3)
    alone = tiny.driver.generate([tiny.driver.add(words)], 3, 33)
    assert first == [tiny.expected(words, [], 3)] * 2 == alone * 2


def test_a_model_without_a_compiler(
    tinies: Tinies, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from shared.kernels import build

    monkeypatch.setattr(build, "_OUTCOME", build._Outcome())
    monkeypatch.setenv("CXX", "/bin/false")
    with caplog.at_level(logging.WARNING):
        driver = Driver(tinies("llava").checkpoint)
    assert not is_on_kernels(driver)
    assert "torch computes, which is slower: /bin/false --version failed (1)" in caplog.text
    prompt = tinies("llava").prompt(0, "hello")
    assert driver.generate([driver.add(prompt)], 4) == [tinies("llava").expected(prompt, [], 4)]
