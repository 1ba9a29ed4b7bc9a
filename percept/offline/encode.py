"""Media files to files of embeddings, through running encoder services.

Knows which file becomes which, what is there already and what went wrong. Does not
know the command line.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from percept.client.async_client import AsyncClient
from percept.client.items import Item, ItemSettings
from percept.client.media import guess_modality, items_of
from shared.errors import BadEmbeddingsError, InvalidRequestError, PerceptError
from shared.families.catalogue import Modality

if TYPE_CHECKING:
    from percept.client.embeddings import Embeddings

SUFFIX = ".safetensors"

_KEYS = "percept.keys"
_MODEL = "percept.model"


@dataclass(frozen=True, slots=True)
class Job:
    """Media files that become one file.

    Attributes:
        sources: one, or several where one file is to hold all.
        target: what is written.
    """

    sources: tuple[Path, ...]
    target: Path


@dataclass(slots=True)
class Outcome:
    """What became of all jobs: counts of files, and the reason of each that failed."""

    encoded_count: int = 0
    present_count: int = 0
    failures: list[tuple[Path, str]] = field(default_factory=list)


def plan(sources: Sequence[Path], out: Path) -> list[Job]:
    """Says which file becomes which.

    Args:
        sources: media files, and folders of such, which are searched whole.
        out: a .safetensors file for all of them, or a folder with one file for each: NAME.safetensors,
            in the same folders below as it was below the folder that was given.

    Raises:
        InvalidRequestError: nothing is there to encode, or two files would become the same.
    """
    found = [pair for source in sources for pair in media_files(source)]
    if not found:
        raise InvalidRequestError("there is no media file to encode")
    if out.suffix == SUFFIX:
        return [Job(tuple(path for path, _ in found), out)]
    jobs: dict[Path, Job] = {}
    for path, below in found:
        target = out / below.parent / (below.name + SUFFIX)
        if target in jobs:
            raise InvalidRequestError(f"{path} and {jobs[target].sources[0]} would both become {target}")
        jobs[target] = Job((path,), target)
    return list(jobs.values())


def media_files(
    source: Path, kinds: Collection[str] = ("image", "video", "audio")
) -> Iterator[tuple[Path, Path]]:
    """Media files of some kinds, and their place below what was named; a file that was named is one."""
    if not source.is_dir():
        yield source, Path(source.name)
        return
    for path in sorted(source.rglob("*")):
        kind = mimetypes.guess_type(path.name)[0] or ""
        if path.is_file() and kind.partition("/")[0] in kinds:
            yield path, path.relative_to(source)


class Encoder:
    """Carries jobs out, several at a time."""

    def __init__(self, client: AsyncClient, settings: ItemSettings, modality: Modality | None) -> None:
        """
        Args:
            settings: of every item.
            modality: what the files are of; each by its name where None.
        """
        self._client = client
        self._settings = settings
        self._modality = modality
        self._model = ""

    async def run(self, jobs: Sequence[Job], advance: Callable[[], None]) -> Outcome:
        """Does what is not done. A file that fails does not keep others from theirs.

        Args:
            advance: called for each file that is done with.

        Raises:
            PerceptError: no encoder service is there at all.
        """
        served = await self._client.encoder_model()
        self._model = f"{served.family} {served.model}"
        outcome = Outcome()
        # One file's bytes and one's rows at a time for each: the bound is also one on memory.
        room = asyncio.Semaphore(await self._client.encoder_concurrency())
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(self._do(job, outcome, room, advance))
        return outcome

    async def _do(
        self, job: Job, outcome: Outcome, room: asyncio.Semaphore, advance: Callable[[], None]
    ) -> None:
        try:
            done = await self._is_there(job, room)
        except _FileError as failure:
            outcome.failures.append((failure.path, failure.reason))
            done = True
        else:
            outcome.present_count += len(job.sources) if done else 0
        if done:
            for _ in job.sources:
                advance()
            return
        parts = await asyncio.gather(
            *(self._encoded(source, outcome, room, advance) for source in job.sources)
        )
        whole = [part for part in parts if part is not None]
        if len(whole) < len(job.sources):
            return  # A file of some of them would pass for one of all.
        try:
            await asyncio.to_thread(self._write, job.target, whole)
            outcome.encoded_count += len(whole)
        except (PerceptError, OSError) as error:
            outcome.failures.append((job.target, _reason(error)))

    async def _is_there(self, job: Job, room: asyncio.Semaphore) -> bool:
        """Says whether the target is whole and was made of this very content by this model.

        Raises:
            _FileError: a source cannot be read.
        """
        metadata = await asyncio.to_thread(_metadata, job.target)
        if metadata is None or metadata.get(_MODEL) != self._model:
            return False
        keys = []
        for source in job.sources:
            async with room:
                item, _ = await asyncio.to_thread(self._read, source)
                keys.append(item.wire.key)
        return metadata.get(_KEYS) == ",".join(keys)

    async def _encoded(
        self, source: Path, outcome: Outcome, room: asyncio.Semaphore, advance: Callable[[], None]
    ) -> tuple[str, Embeddings] | None:
        """A file's key and its embeddings; None on failure."""
        try:
            async with room:
                item, modality = await asyncio.to_thread(self._read, source)
                return item.wire.key, await self._client.encode_item(item, modality)
        except _FileError as failure:
            outcome.failures.append((failure.path, failure.reason))
        except PerceptError as error:
            outcome.failures.append((source, _reason(error)))
        finally:
            advance()
        return None

    def _read(self, source: Path) -> tuple[Item, Modality]:
        if source.suffix == SUFFIX:
            raise _FileError(source, "it holds embeddings, not media")
        modality = self._modality or guess_modality(source)
        try:
            (item,) = items_of(source, modality, self._settings[modality], "")
        except PerceptError as error:
            raise _FileError(source, str(error).removeprefix(f"{source}: ")) from None
        return item, modality

    def _write(self, target: Path, parts: Sequence[tuple[str, Embeddings]]) -> None:
        """Writes the file whole or not at all."""
        from percept.client.embeddings import Embeddings

        metadata = {_KEYS: ",".join(key for key, _ in parts), _MODEL: self._model}
        write_whole(target, Embeddings.joined([embeddings for _, embeddings in parts]).to_bytes(metadata))


class _FileError(Exception):
    """A source that cannot be read as media."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


def _metadata(target: Path) -> dict[str, str] | None:
    """What a whole file of embeddings says of itself; None where there is none."""
    from percept.client.tensors import read_safetensors

    try:
        return read_safetensors(target.read_bytes())[1]
    except (OSError, BadEmbeddingsError):
        return None


def write_whole(target: Path, data: bytes) -> None:
    """Writes a file so that it is there whole or, killed at any moment, as it was before."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
