"""Audio encoders over clips of different lengths give what transformers gives for padded and masked ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import Qwen2AudioEncoderConfig, WhisperConfig
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from shared.families import tower_attention
from shared.families.audio_tower import FRAMES_BEHIND, AudioEncoder, row_count
from shared.families.base import Family, Features
from shared.families.tower_attention import register
from shared.families.triton_varlen import attend_within_segments
from shared.kernels.build import built_library
from shared.kernels.library import Library, Team
from tests.asking import sound
from tests.items import features_of
from tests.oracle import Recording
from tests.unit.families.test_tower_attention import DEVICE

BANDS, FRAMES, WIDTH = 16, 200, 64
LENGTHS = [200, 57, 120, 3, 1, 199]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def team(needs_compiler: None) -> Team:
    return Library(built_library()).make_team(2)


def built(encoder: Any, config: Any) -> Any:
    config._attn_implementation = "sdpa"
    return encoder(config)


SIZES: dict[str, Any] = {
    "num_mel_bins": BANDS,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "d_model": WIDTH,
    "max_source_positions": FRAMES // 2,
}


def whisper() -> Any:
    return built(WhisperEncoder, WhisperConfig(**SIZES))


def qwen2_audio() -> Any:
    return built(Qwen2AudioEncoder, Qwen2AudioEncoderConfig(**SIZES))


@pytest.fixture(params=[whisper, qwen2_audio])
def module(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return request.param().eval().requires_grad_(False)


@pytest.fixture
def spectra() -> torch.Tensor:
    return torch.randn(len(LENGTHS), BANDS, FRAMES, generator=torch.Generator().manual_seed(1))


def masked(module: Any, spectra: torch.Tensor) -> list[torch.Tensor]:
    """The layers over all clips padded, with a mask, as transformers' models call them."""
    counts = [row_count(length) for length in LENGTHS]
    shown = torch.arange(FRAMES // 2)[None] < torch.tensor(counts)[:, None]
    mask = torch.zeros(shown.shape).masked_fill(~shown, torch.finfo(torch.float32).min)[:, None, None]
    hidden = functional.gelu(module.conv2(functional.gelu(module.conv1(spectra)))).transpose(1, 2)
    hidden = hidden + module.embed_positions.weight
    for layer in module.layers:
        hidden = layer(hidden, mask)
    return [rows[:count] for rows, count in zip(hidden, counts, strict=True)]


def cut(spectra: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
    clips = [spectrum[:, : length + FRAMES_BEHIND] for spectrum, length in zip(spectra, LENGTHS, strict=True)]
    return clips, [row_count(length) for length in LENGTHS]


def check(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float = 1e-5) -> None:
    for rows, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(rows.cpu(), reference, atol=tolerance, rtol=tolerance)


def test_rows_are_those_of_masked_padding(module: Any, spectra: torch.Tensor) -> None:
    check(AudioEncoder(module).rows(*cut(spectra)), masked(module, spectra))


def test_whole_clips_are_the_encoders_own(spectra: torch.Tensor) -> None:
    torch.manual_seed(0)
    encoder = whisper().eval().requires_grad_(False)
    rows = AudioEncoder(encoder).rows(list(spectra), [FRAMES // 2] * len(spectra))
    expected = encoder(spectra).last_hidden_state
    check([encoder.layer_norm(one) for one in rows], list(expected))


def test_on_our_kernels(module: Any, spectra: torch.Tensor, team: Team) -> None:
    expected = masked(module, spectra)
    encoder = AudioEncoder(module)
    assert encoder.use_kernels(team)
    clips, counts = cut(spectra)
    for chosen in ([0, 1, 2, 3, 4, 5], [3], [5, 0], [4, 4, 4], [2, 1]):
        found = encoder.rows([clips[index] for index in chosen], [counts[index] for index in chosen])
        check(found, [expected[index] for index in chosen])


def test_an_activation_that_kernels_lack_stays_with_torch(module: Any, team: Team) -> None:
    module.config.activation_function = "mish"
    assert not AudioEncoder(module).use_kernels(team)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Chooses our kernel on any device; yields the numbers of segments that it was called with."""
    counts: list[int] = []

    def kernel(*arguments: Any) -> torch.Tensor:
        counts.append(len(arguments[3]) - 1)
        return attend_within_segments(*arguments)

    monkeypatch.setattr(tower_attention, "choose_kernel", lambda device, dtype: kernel)
    yield counts
    register(attend_within_segments)


def test_one_call_a_layer_for_all_clips(module: Any, spectra: torch.Tensor, called: list[int]) -> None:
    expected = masked(module, spectra)
    encoder = AudioEncoder(module.to(DEVICE))
    assert encoder.use_segments(DEVICE, torch.float32)
    check(encoder.rows(*cut(spectra)), expected, 1e-4)
    assert called == [len(LENGTHS)] * 3


def heard(family: Family) -> list[Features]:
    seconds = (1.3, 0.6, 2.71, 0.04)
    return [
        features_of(family.preprocessor(), Recording(sound(seed, length)))
        for seed, length in enumerate(seconds)
    ]


def test_the_tower_on_our_kernels(family: Callable[[str], Family], team: Team) -> None:
    parts = family("qwen2_audio")
    features = heard(parts)
    expected = [parts.tower(CPU, torch.float32).encode([one])[0]["embeds"] for one in features]
    tower = parts.tower(CPU, torch.float32)
    assert tower.use_kernels(team)
    for chosen in ([0, 1, 2, 3], [2], [1, 1], [3, 0]):
        found = [made["embeds"] for made in tower.encode([features[index] for index in chosen])]
        check(found, [expected[index] for index in chosen], 5e-5)
