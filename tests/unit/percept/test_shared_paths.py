"""What services share is there while they run, and no longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from percept.launcher.shared_paths import shared_paths


def folders(memory: Path) -> set[str]:
    return {path.name for path in memory.iterdir()}


def test_they_go_with_their_contents(tmp_path: Path) -> None:
    with shared_paths(tmp_path) as shared:
        assert shared.cores is not None and shared.rows is not None
        cores, rows = Path(shared.cores), Path(shared.rows)
        assert cores.is_file() and rows.is_dir() and rows.stat().st_mode & 0o777 == 0o700
        (rows / "rows").write_bytes(b"rows")
    assert not cores.exists() and not folders(tmp_path)


def test_two_at_a_time(tmp_path: Path) -> None:
    with shared_paths(tmp_path) as first:
        with shared_paths(tmp_path) as second:
            assert first.rows != second.rows and len(folders(tmp_path)) == 2
        assert first.rows is not None and folders(tmp_path) == {Path(first.rows).name}


def test_a_folder_whose_process_was_killed_goes_with_the_next_start(tmp_path: Path) -> None:
    program = (
        "import os, signal\nfrom pathlib import Path\n"
        "from percept.launcher.shared_paths import shared_paths\n"
        f"with shared_paths(Path({str(tmp_path)!r})) as shared:\n"
        "    (Path(shared.rows) / 'rows').touch()\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    (forgotten,) = folders(tmp_path)
    (tmp_path / "somebody else's").mkdir()
    with shared_paths(tmp_path) as shared:
        assert shared.rows is not None
        assert (
            folders(tmp_path) == {Path(shared.rows).name, "somebody else's"} and forgotten not in shared.rows
        )


def test_without_memory_to_share(tmp_path: Path) -> None:
    with shared_paths(tmp_path / "nowhere") as shared:
        assert shared.rows is None and shared.cores is not None
