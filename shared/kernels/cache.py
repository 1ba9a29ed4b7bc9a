"""A folder of compiled libraries, shared by the processes of one user.

Knows how a file is kept whole: it is sealed with a digest of its bytes, and
found only while the seal fits. Does not know what is in it. What was not used
for a month is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

UNUSED_S = 30 * 24 * 3600.0
SEAL_BYTES = hashlib.sha256().digest_size
LOCK_WAIT_S = 0.1


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder that this user alone can write to."""

    folder: Path

    def find(self, name: str) -> Path | None:
        """A file that was kept here and is whole; it counts as used now."""
        path = self.folder / name
        try:
            content = path.read_bytes()
            if hashlib.sha256(content[:-SEAL_BYTES]).digest() != content[-SEAL_BYTES:]:
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def keep(self, made: Path) -> Path:
        """Seals a file of this file system and moves it here, whole; removes what nobody uses.

        The loader of shared libraries does not mind what follows their end.
        """
        with made.open("r+b") as file:
            seal = hashlib.sha256(file.read()).digest()
            file.write(seal)
        target = self.folder / made.name
        os.replace(made, target)
        self._remove_unused()
        return target

    @contextmanager
    def locked(self, timeout_s: float) -> Iterator[None]:
        """One process at a time: the others wait for what it makes.

        After `timeout_s` a waiting one goes on as well: two may make the same.
        """
        with (self.folder / "lock").open("w") as file:
            deadline = time.monotonic() + timeout_s
            while not _try_lock(file.fileno()) and time.monotonic() < deadline:
                time.sleep(LOCK_WAIT_S)
            yield

    def _remove_unused(self) -> None:
        oldest = time.time() - UNUSED_S
        for path in [*self.folder.glob("kernels-*.so"), *self.folder.glob("building-*")]:
            try:
                if path.stat().st_mtime >= oldest:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            except FileNotFoundError:  # another process was first
                continue


def open_cache() -> Cache:
    """`percept` under XDG_CACHE_HOME (~/.cache where it is not set), or where that cannot be written, a
    folder of this user in the system's folder of temporary files.

    Raises:
        OSError: neither can be had.
    """
    for folder in _user_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return Cache(folder)
        except OSError:
            continue
    return Cache(_temporary_folder())


def _user_folders() -> Iterator[Path]:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        yield (Path(base) if base else Path.home() / ".cache") / "percept"
    except RuntimeError:  # a user without a home
        return


def _temporary_folder() -> Path:
    """Others may write beside it, so it must be this user's own: code is loaded from there."""
    folder = Path(tempfile.gettempdir()) / f"percept-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to somebody else")
    return folder


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
