"""Recordings to files of text, through a running gateway.

Knows which recording becomes which file, what is there already and what went wrong. Does not
know the command line.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import httpx

from percept.offline.encode import media_files
from percept.offline.persistent import BrokenOffError, answered, message_of

Upload = tuple[str, bytes | BinaryIO]
"""Name and content of a form's file."""

SUFFIXES = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "json": ".json", "verbose_json": ".json"}
"""Of the file of each format."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about every recording.

    Attributes:
        translates: have it in English.
        fields: of the request's form, lists of texts under names with "[]".
    """

    translates: bool
    fields: Mapping[str, str | list[str]]

    @property
    def path(self) -> str:
        """Of the request."""
        return f"/v1/audio/{'translations' if self.translates else 'transcriptions'}"


@dataclass(slots=True)
class Outcome:
    """What became of all recordings: counts of files, and the reason of each that failed."""

    written_count: int = 0
    present_count: int = 0
    failures: list[tuple[Path, str]] = field(default_factory=list)


def plan(sources: Sequence[Path], out: Path, suffix: str) -> dict[Path, Path]:
    """Says which recording becomes which file: those of folders in the same folders below `out`.

    Returns:
        Recordings by target.

    Raises:
        ValueError: there is no recording, or two would become the same file.
    """
    targets: dict[Path, Path] = {}
    for source in sources:
        for path, below in media_files(source, ("audio", "video")):
            target = out / below.parent / (below.name + suffix)
            if target in targets:
                raise ValueError(f"{path} and {targets[target]} would both become {target}")
            targets[target] = path
    if not targets:
        raise ValueError("there is no recording to transcribe")
    return targets


async def transcribe_all(
    http: httpx.AsyncClient,
    targets: Mapping[Path, Path],
    question: Question,
    concurrency: int,
    advance: Callable[[], None],
) -> Outcome:
    """Does what is not done. A recording that fails does not keep others from theirs.

    Args:
        http: its base URL is the gateway's.
        advance: called for each recording that is done with.

    Raises:
        GatewayGoneError: nobody answers.
    """
    outcome = Outcome()
    left = iter(targets.items())

    async def lane() -> None:
        for target, source in left:
            await _transcribe(http, source, target, question, outcome)
            advance()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(targets))):
                group.create_task(lane())
    except ExceptionGroup as faults:
        raise faults.exceptions[0] from None
    return outcome


async def _transcribe(
    http: httpx.AsyncClient, source: Path, target: Path, question: Question, outcome: Outcome
) -> None:
    if await asyncio.to_thread(target.exists):
        outcome.present_count += 1
        return
    try:
        with open_recording(source) as recording:
            response = await answered(
                http, lambda: http.post(question.path, data=question.fields, files={"file": recording})
            )
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"{response.status_code}: {message_of(response)}")
        await asyncio.to_thread(_write, target, response.content)
    except httpx.TimeoutException:
        outcome.failures.append((source, "the gateway did not answer in time"))
    except OSError as error:
        outcome.failures.append((source, error.strerror or str(error)))
    except (ValueError, BrokenOffError) as error:
        outcome.failures.append((source, str(error)))
    else:
        outcome.written_count += 1


@contextmanager
def open_recording(path: Path) -> Iterator[Upload]:
    """A recording as a part of a form. A file is read while it is sent, and again when it is sent again.

    Raises:
        OSError: it cannot be read.
    """
    # A name of bytes that are no text is told as far as it is.
    name = path.name.encode("utf-8", "replace").decode()
    with path.open("rb") as file:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        yield name, file if regular else file.read()


def _write(target: Path, content: bytes) -> None:
    """Whole or not at all, so that what is there is done."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
