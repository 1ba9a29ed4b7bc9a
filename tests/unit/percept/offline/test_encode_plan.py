"""Which file becomes which, and that files are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from percept.offline.encode import plan, write_whole
from shared.errors import InvalidRequestError


def test_one_file_for_each_in_the_same_folders(tmp_path: Path) -> None:
    for name in ("a.png", "deep/a.png", "deep/b.mp4", "deep/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    jobs = plan([tmp_path, Path("c.jpg")], Path("out"))
    assert {str(job.target) for job in jobs} == {
        "out/a.png.safetensors",
        "out/deep/a.png.safetensors",
        "out/deep/b.mp4.safetensors",
        "out/c.jpg.safetensors",
    }


def test_one_file_for_all(tmp_path: Path) -> None:
    (job,) = plan([Path("a.png"), Path("b.png")], tmp_path / "all.safetensors")
    assert job.sources == (Path("a.png"), Path("b.png"))


def test_two_that_would_become_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="would both become"):
        plan([Path("x/a.png"), Path("y/a.png")], tmp_path)


def test_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no media file"):
        plan([tmp_path], tmp_path / "out")


def test_a_file_that_cannot_be_written_leaves_what_was(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a"
    write_whole(target, b"first")
    with pytest.raises(TypeError):
        write_whole(target, None)  # type: ignore[arg-type]
    assert [path.name for path in target.parent.iterdir()] == ["a"]
    assert target.read_bytes() == b"first"
