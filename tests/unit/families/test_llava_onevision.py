"""Videos of LLaVA-OneVision equal transformers; what its family refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.checkpoint import read_checkpoint
from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families import load_family
from shared.families.base import Family, Features, Grid, MediaInfo, VideoClip
from shared.torch_tensors import to_raw
from tests.asking import picture
from tests.families import all_cases
from tests.oracle import Oracle, Video
from tests.reference import ReferenceModel
from tests.unit.families.conftest import Build

CPU = torch.device("cpu")
TOLERANCE = 2e-5
NAME = "llava_onevision"

GetFamily = Callable[[str], Family]


def video(frames: int, size: tuple[int, int]) -> Video:
    """Another picture in each frame."""
    return Video(np.stack([np.asarray(picture(seed, size)) for seed in range(frames)]))


def clip_of(shown: Video) -> VideoClip:
    count = len(shown.frames)
    return VideoClip(shown.frames, tuple(range(count)), count, shown.fps)


@pytest.mark.parametrize(
    ("frames", "size"), [(1, (28, 28)), (4, (28, 28)), (3, (100, 40)), (2, (12, 20))], ids=str
)
def test_pixels_tokens_and_rows(
    frames: int,
    size: tuple[int, int],
    tiny: Build,
    family: GetFamily,
    reference: Callable[[str], ReferenceModel],
    oracle: Oracle,
) -> None:
    """Pixels are equal to the bit, prompts token for token, rows closely."""
    shown = video(frames, size)
    answer = oracle.ask(all_cases()[NAME], tiny(NAME), "look: <video> what happens?", [shown], inputs=True)
    features = family(NAME).preprocessor().preprocess_video(clip_of(shown), {})
    tower: Any = family(NAME).tower(CPU, torch.float32)
    expected_pixels = answer.inputs["pixel_values_videos"]
    np.testing.assert_array_equal(tower._pixels(features)[None].numpy(), expected_pixels)

    layout = family(NAME).prompt_layout()
    video_id = layout.placeholder_ids()["video"]
    text = [token for token in answer.prompt_ids if token != video_id]
    place = answer.prompt_ids.index(video_id)
    prompt = layout.expand([*text[:place], video_id, *text[place:]], [features.info])
    assert prompt.token_ids == answer.prompt_ids

    (made,) = tower.encode([features])
    with torch.no_grad():
        model = reference(NAME).model
        output = model.get_video_features(torch.from_numpy(expected_pixels), vision_feature_layer=-1)
    torch.testing.assert_close(made["embeds"], output.pooler_output[0], atol=TOLERANCE, rtol=TOLERANCE)


def test_a_batch_and_parts_give_the_rows_of_the_whole(family: GetFamily) -> None:
    preprocessor, tower = family(NAME).preprocessor(), family(NAME).tower(CPU, torch.float32)
    long = preprocessor.preprocess_video(clip_of(video(70, (40, 30))), {})
    batch = [
        preprocessor.preprocess_image(picture(1, (60, 140)), {}),
        long,
        preprocessor.preprocess_image(picture(2, (28, 28)), {}),
        preprocessor.preprocess_video(clip_of(video(2, (30, 40))), {}),
    ]
    assert [len(tower.split(each)) for each in batch] == [1, 3, 1, 1]
    for features, together in zip(batch, tower.encode(batch), strict=True):
        assert len(together["embeds"]) == features.info.row_count
        parts: list[Features] = tower.split(features)
        assert sum(part.token_cost for part in parts) == features.token_cost
        rows = [tower.encode([part])[0]["embeds"] for part in parts]
        assert [len(each) for each in rows] == [part.info.row_count for part in parts]
        torch.testing.assert_close(torch.cat(rows), together["embeds"], atol=TOLERANCE, rtol=TOLERANCE)


def test_pictures_and_videos_by_turns() -> None:
    from shared.families.llava_onevision import LlavaOnevisionLayout

    layout = LlavaOnevisionLayout({"image": 8, "video": 9})
    prompt = layout.expand([1, 9, 8, 2], [MediaInfo(3), MediaInfo(2)])
    assert prompt.token_ids == [1, 9, 9, 9, 8, 8, 2]
    assert [(span.item, span.start, span.length) for span in prompt.spans] == [(0, 1, 3), (1, 4, 2)]
    assert prompt.positions.tolist() == [list(range(7))]
    assert layout.placeholder_text("video") == "<video>"
    with pytest.raises(InvalidRequestError, match="2 placeholders for 1 items"):
        layout.expand([8, 9], [MediaInfo(3)])


def test_precomputed_videos(family: GetFamily) -> None:
    """A frame of 3 x 3 patches has 2 x 2 rows."""
    preprocessor = family(NAME).preprocessor()
    item = preprocessor.accept_embeddings("video", {"video_embeds": to_raw(torch.ones(13, 64))})
    assert item.info == MediaInfo(13, (Grid(3, 2, 2),))
    for rows in (1, 4, 12, 14):
        with pytest.raises(BadEmbeddingsError, match="4 a frame and one more"):
            preprocessor.accept_embeddings("video", {"video_embeds": to_raw(torch.ones(rows, 64))})


@pytest.mark.parametrize("model_type", [NAME, "llava_next"])
def test_precomputed_pictures_have_the_rows_of_their_size(model_type: str, family: GetFamily) -> None:
    preprocessor = family(model_type).preprocessor()
    rows = preprocessor.preprocess_image(Image.new("RGB", (140, 60)), {}).info.row_count
    size = to_raw(torch.tensor([[60, 140]]))
    for count in (rows - 1, rows, rows + 1):
        fields = {"image_embeds": to_raw(torch.ones(count, 64)), "image_sizes": size}
        if count == rows:
            assert preprocessor.accept_embeddings("image", fields).info == MediaInfo(rows, (), (60, 140))
            continue
        with pytest.raises(BadEmbeddingsError, match=f"implies {rows}"):
            preprocessor.accept_embeddings("image", fields)


@pytest.mark.parametrize("model_type", [NAME, "llava_next"])
def test_there_are_no_settings(model_type: str, family: GetFamily) -> None:
    preprocessor = family(model_type).preprocessor()
    with pytest.raises(InvalidRequestError, match="'size'"):
        preprocessor.preprocess_image(Image.new("RGB", (60, 60)), {"size": {"height": 28}})
    if model_type == NAME:
        with pytest.raises(InvalidRequestError, match="'size'"):
            preprocessor.preprocess_video(clip_of(video(1, (28, 28))), {"size": {"height": 28}})


def changed(source: Path, target: Path, file: str, **values: Any) -> Family:
    """The family of a copy with other values in one of its files."""
    shutil.copytree(source, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(content | values))
    return load_family(read_checkpoint(target))


@pytest.mark.parametrize(
    ("model_type", "file", "values", "reason"),
    [
        (NAME, "config.json", {"vision_aspect_ratio": "anyres"}, "not anyres_max_N, but 'anyres'"),
        (NAME, "config.json", {"image_grid_pinpoints": [[28, 30]]}, r"\[28, 30\] is not made of tiles of 28"),
        (NAME, "config.json", {"image_grid_pinpoints": []}, "there are no canvases"),
        (
            NAME,
            "preprocessor_config.json",
            {"image_grid_pinpoints": [[28, 28]]},
            "differ in image_grid_pinpoints",
        ),
        (
            NAME,
            "video_preprocessor_config.json",
            {"size": {"height": 56, "width": 56}},
            "takes frames of 28 x 28",
        ),
        (NAME, "video_preprocessor_config.json", {"do_resize": False}, "takes frames of 28 x 28"),
        (
            "llava_next",
            "config.json",
            {"vision_feature_select_strategy": "full"},
            "other rows than its patches",
        ),
        (
            "llava_next",
            "preprocessor_config.json",
            {"crop_size": {"height": 14, "width": 14}},
            "makes 14 x 14 pixels, the tower takes 28 x 28",
        ),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    model_type: str, file: str, values: dict[str, Any], reason: str, tiny: Build, tmp_path: Path
) -> None:
    family = changed(tiny(model_type), tmp_path / "changed", file, **values)
    with pytest.raises(InvalidRequestError, match=reason):
        family.preprocessor()
