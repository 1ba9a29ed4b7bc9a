"""SmolVLM's videos: the times that a prompt says are those that embeddings carry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from shared.families.base import Family, MediaInfo, VideoClip
from shared.torch_tensors import to_raw
from tests.asking import moving_picture


def test_times_just_below_a_second_come_back_as_the_same_words(family: Callable[[str], Family]) -> None:
    """Float32 would make 59 of the 58.999999999999993 s of the last frame."""
    parts = family("smolvlm")
    rate = 3 / 59
    assert 3 / rate < 59 == float(np.float32(3 / rate))
    clip = VideoClip(moving_picture(1, (64, 64), 2), (0, 3), 4, rate)
    info = parts.preprocessor().preprocess_video(clip, {}).info
    sent = {
        "video_embeds": to_raw(torch.zeros(info.row_count, parts.hidden_size())),
        "timestamps": to_raw(torch.tensor(info.timestamps)),
        "duration": to_raw(torch.tensor([info.duration])),
    }
    back = parts.preprocessor().accept_embeddings("video", sent).info
    exact = MediaInfo(info.row_count, info.grids, timestamps=clip.times, duration=4 / rate)
    layout = parts.prompt_layout()
    texts = {layout.item_text("video", each) for each in (info, back, exact)}  # type: ignore[attr-defined]
    assert len(texts) == 1 and "Frame from 00:58:" in texts.pop()
