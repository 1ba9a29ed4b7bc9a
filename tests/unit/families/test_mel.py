"""Spectrograms with NumPy are those of transformers' extractor, which computes them in torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from shared.checkpoint import read_checkpoint
from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint
from shared.families.mel import LogMel
from tests.asking import sound

SECONDS = 4
COUNTS = (1, 100, 159, 160, 161, 399, 400, 401, 16_000, 48_123, 63_800, 63_999, 64_000)
TOLERANCE = 1e-4
"""Near a clip's floor, one Fourier transform in single precision is that far from another."""


def extractor(bands: int) -> Any:
    return WhisperFeatureExtractor(feature_size=bands, chunk_length=SECONDS)


@pytest.mark.parametrize("bands", [80, 128])
def test_a_padded_clip(bands: int) -> None:
    theirs = extractor(bands)
    ours = LogMel(theirs)
    for count in COUNTS:
        for samples in (sound(count, count / 16_000), np.zeros(count, np.float32)):
            expected = theirs(samples, sampling_rate=16_000, return_attention_mask=True)
            spectrum = ours(samples, SECONDS * 16_000)
            assert spectrum.dtype == np.float32 and spectrum.flags.c_contiguous
            np.testing.assert_allclose(spectrum, expected["input_features"][0], atol=TOLERANCE, rtol=0)
            assert ours.frame_count(count) == expected["attention_mask"].sum()


def test_most_numbers_are_much_closer() -> None:
    samples = sound(1, 2.5)
    difference = LogMel(extractor(80))(samples, 64_000) - extractor(80)(samples)["input_features"][0]
    assert np.abs(difference).mean() < 1e-6


@pytest.mark.parametrize("count", [201, 400, 16_000, 16_001, 16_159, 63_999])
def test_a_clip_that_is_not_padded(count: int) -> None:
    samples = sound(count, count / 16_000)
    expected = extractor(80)(samples, sampling_rate=16_000, padding=False, truncation=False)
    np.testing.assert_allclose(
        LogMel(extractor(80))(samples), expected["input_features"][0], atol=TOLERANCE, rtol=0
    )


def test_long_clips_are_transformed_in_pieces() -> None:
    """With a piece's edge in the middle of the sound, of a clip that is padded to half an hour."""
    samples = sound(3, 50.0)
    whole = LogMel(extractor(80))
    spectrum = whole(samples, 1800 * 16_000)
    assert spectrum.shape == (80, 180_000)
    around = whole(samples[40 * 16_000 : 42 * 16_000])
    # Both are clipped at the same height, as both have the loudest sound of all in them or not.
    inner = slice(4_090 - 4_000, 4_100 - 4_000)
    floor = spectrum.max() - 2
    np.testing.assert_allclose(
        np.maximum(spectrum[:, 4_090:4_100], floor), np.maximum(around[:, inner], floor), atol=1e-3
    )
    assert (spectrum[:, 5_002:] == spectrum.min()).all()


def test_settings_come_from_the_checkpoint(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = tiny_checkpoint("qwen2_audio")
    made = LogMel.of(read_checkpoint(source))
    assert (made.sampling_rate, made.hop_length, made.mel_count, made.most_samples) == (
        16_000,
        160,
        40,
        64_000,
    )
    with pytest.raises(InvalidRequestError, match="no usable feature extractor"):
        LogMel.of(Checkpoint(tmp_path, {}))
    settings = json.loads((source / "preprocessor_config.json").read_text()) | {"dither": 0.1}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InvalidRequestError, match="dither"):
        LogMel.of(Checkpoint(tmp_path, {}))


def test_no_torch_is_needed(tiny_checkpoint: Callable[[str], Path]) -> None:
    probe = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from shared.checkpoint import read_checkpoint\n"
        "from shared.families import load_family\n"
        "from shared.families.base import AudioClip\n"
        f"made = load_family(read_checkpoint(Path({str(tiny_checkpoint('qwen2_audio'))!r}))).preprocessor()\n"
        "clip = AudioClip(np.zeros(16000, np.float32), 16000)\n"
        "print(made.preprocess_audio(clip, {}).info.row_count, {'scipy', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "25 set()"
