"""Relative paths in requests become data, and lead nowhere else."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from percept.offline.inline_media import MediaFolder


def body(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": list(parts)}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    below = tmp_path / "media"
    (below / "deep").mkdir(parents=True)
    (below / "a.png").write_bytes(b"picture")
    (below / "deep" / "b.mp4").write_bytes(b"video")
    (below / "c.safetensors").write_bytes(b"rows")
    (tmp_path / "secret").write_bytes(b"secret")
    (below / "link.png").symlink_to(tmp_path / "secret")
    return below


def test_paths_become_data(folder: Path) -> None:
    asked = body(
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": "./a.png"},
        {"type": "video_url", "video_url": {"url": "deep/b.mp4"}},
        {"type": "image_embeds", "image_embeds": "c.safetensors"},
        {"type": "text", "text": "a.png"},
    )
    media = MediaFolder(folder)
    media.check(asked)
    media.inline(asked)
    picture = "data:image/png;base64," + base64.b64encode(b"picture").decode()
    parts = asked["messages"][1]["content"]
    assert parts[0]["image_url"]["url"] == parts[1]["image_url"] == picture
    assert parts[2]["video_url"]["url"] == "data:video/mp4;base64," + base64.b64encode(b"video").decode()
    assert base64.b64decode(parts[3]["image_embeds"]) == b"rows"
    assert parts[4] == {"type": "text", "text": "a.png"}


def test_paths_in_prompts_become_data(folder: Path) -> None:
    def asked(picture: str, video: str, rows: str) -> list[dict[str, Any]]:
        data = {"image": [picture, {"image_embeds": rows}], "video": {"url": video}}
        return [
            {"prompt": "x", "multi_modal_data": data},
            {"prompt": {"prompt": "x", "multi_modal_data": data}},
            {"prompt": ["x", {"encoder_prompt": {"multi_modal_data": data}, "decoder_prompt": "x"}]},
            {"encoder_prompt": {"multi_modal_data": data}},
        ]

    picture = "data:image/png;base64," + base64.b64encode(b"picture").decode()
    video = "data:video/mp4;base64," + base64.b64encode(b"video").decode()
    right = asked(picture, video, base64.b64encode(b"rows").decode())
    media = MediaFolder(folder)
    for index in range(len(right)):
        given = asked("a.png", "deep/b.mp4", "c.safetensors")[index]
        media.check(given)
        media.inline(given)
        assert given == right[index]
    with pytest.raises(ValueError, match="leads out"):
        media.check({"prompt": "x", "multi_modal_data": {"image": "../secret"}})
    media.check({"prompt": 5, "multi_modal_data": {"image": 5, "video": [None, {}]}})


@pytest.mark.parametrize(
    "url",
    ["data:,a", "http://host/a.png", "HTTPS://host/a.png", "file:///tmp/a.png", "/tmp/a.png", "", None, 3],
)
def test_other_urls_stay(folder: Path, url: Any) -> None:
    asked = body({"type": "image_url", "image_url": {"url": url}})
    MediaFolder(folder).inline(asked)
    assert asked == body({"type": "image_url", "image_url": {"url": url}})


@pytest.mark.parametrize(
    "given", [{}, {"messages": 3}, {"messages": [3, {"content": [3, {"image_url": 4}]}]}]
)
def test_other_bodies_stay(folder: Path, given: dict[str, Any]) -> None:
    MediaFolder(folder).inline(given)


@pytest.mark.parametrize("url", ["../secret", "link.png", "deep/../../secret", "none.png", "deep", "a\0b"])
def test_paths_that_lead_nowhere_good(folder: Path, url: str) -> None:
    for use in (MediaFolder(folder).check, MediaFolder(folder).inline):
        with pytest.raises(ValueError):
            use(body({"type": "image_url", "image_url": {"url": url}}))


def test_a_folder_that_is_none(folder: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        MediaFolder(folder / "a.png")
