"""The rate at which a checkpoint's own video processor samples, and what becomes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from encoder_service.media.video_sampling import Sampling
from shared.families.base import Checkpoint
from shared.families.video_settings import own_frame_rate

TIMES = [number / 8 for number in range(32)]


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({"do_sample_frames": True, "fps": 2}, 2.0),
        ({"do_sample_frames": True, "fps": 0.5}, 0.5),
        ({"do_sample_frames": False, "fps": 2}, None),
        ({"fps": 2}, None),
        ({"do_sample_frames": True}, None),
        ({"do_sample_frames": True, "fps": 0}, None),
        ({"do_sample_frames": True, "fps": True}, None),
        ({"do_sample_frames": True, "fps": "2"}, None),
    ],
)
def test_what_the_file_says(tmp_path: Path, settings: dict[str, Any], rate: float | None) -> None:
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(settings))
    assert own_frame_rate(Checkpoint(tmp_path, {}, {})) == rate


def test_no_file_says_nothing(tmp_path: Path) -> None:
    assert own_frame_rate(Checkpoint(tmp_path, {}, {})) is None


def test_the_rate_holds_where_nobody_asks_for_another_choice() -> None:
    assert Sampling.of({}, 768, 2.0).indices(TIMES) == [0, 4, 8, 12, 16, 20, 24, 28]
    assert len(Sampling.of({"num_frames": 32}, 768, 2.0).indices(TIMES)) == 32
    assert Sampling.of({"fps": 1}, 768, 2.0).indices(TIMES) == [0, 8, 16, 24]
    assert len(Sampling.of({"num_frames": -1}, 768, 2.0).indices(TIMES)) == 32
    assert len(Sampling.of({}, 5, 2.0).indices(TIMES)) == 5, "the service's bound holds"
    assert len(Sampling.of({}, 768).indices(TIMES)) == 32
