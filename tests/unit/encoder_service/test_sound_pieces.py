"""Recordings are cut where they are quiet, and their pieces are all of them."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_service.media.sound_pieces import piece_starts
from encoder_service.splitting import SplitRecording
from tests.asking import sound

RATE = 16_000


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 200_000),
    most=st.sampled_from([8_000, 16_000, 64_000]),
    seed=st.integers(0, 5),
    silent=st.booleans(),
)
def test_pieces_fit_and_are_not_tiny(length: int, most: int, seed: int, silent: bool) -> None:
    samples = np.zeros(length, np.float32) if silent else sound(seed, length / RATE)[:length]
    starts = piece_starts(samples, RATE, most)
    lengths = np.diff([*starts, len(samples)])
    assert starts[0] == 0 and lengths.sum() == len(samples)
    assert lengths.max() <= most
    assert len(starts) == 1 or lengths.min() >= most // 5
    assert len(samples) > most or starts == [0]


def test_a_cut_is_in_the_middle_of_a_pause() -> None:
    samples = np.random.default_rng(0).normal(0, 0.3, 10 * RATE).astype(np.float32)
    for second in (3.5, 7.1):
        samples[int((second - 0.1) * RATE) : int((second + 0.1) * RATE)] *= 0.01
    starts = piece_starts(samples, RATE, 4 * RATE)
    np.testing.assert_allclose(np.array(starts) / RATE, [0, 3.5, 7.1], atol=0.06)


def test_silence_is_cut_as_late_as_it_may_be() -> None:
    assert piece_starts(np.zeros(10 * RATE, np.float32), RATE, 4 * RATE) == [0, 4 * RATE, 8 * RATE]


def test_pieces_as_files() -> None:
    samples = sound(3, 2.0)
    recording = SplitRecording(samples, RATE, (0, 10_000, 25_000))
    layout = recording.layout()
    files = list(recording.files())
    assert [piece.byte_count for piece in layout.pieces] == [len(file) for file in files]
    assert layout.seconds == 2.0
    assert [piece.start_seconds for piece in layout.pieces] == [0, 0.625, 1.5625]
    assert layout.pieces[-1].end_seconds == 2.0
    read = [soundfile.read(io.BytesIO(file), dtype="float32") for file in files]
    assert {rate for _, rate in read} == {RATE}
    np.testing.assert_array_equal(np.concatenate([data for data, _ in read]), samples)


def test_what_is_not_cut_does_not_come_back() -> None:
    recording = SplitRecording(sound(3, 1.0), RATE, (0,))
    assert list(recording.files()) == []
    assert [piece.byte_count for piece in recording.layout().pieces] == [0]
