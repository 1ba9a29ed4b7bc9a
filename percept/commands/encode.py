"""`percept encode`: media files to files of embeddings, through a running encoder service.

Knows the command line and what is told on it. The work is in `percept/offline/encode.py`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from percept.client.items import ItemSettings
    from percept.offline.encode import Job, Outcome
    from shared.families.catalogue import Modality


def encode(
    files: Annotated[list[Path], typer.Argument(help="Media files, and folders of them.", metavar="FILE")],
    out: Annotated[
        Path,
        typer.Option(
            help="A .safetensors file for all of them, or a folder with one for each: NAME.safetensors."
        ),
    ],
    encoder: Annotated[
        str, typer.Option(help="HOST:PORT of encoder services, several with commas.")
    ] = "127.0.0.1:50051",
    mm_processor_kwargs: Annotated[
        str, typer.Option(help='Processor settings as JSON, for example {"max_pixels": 100352}.')
    ] = "{}",
    media_io_kwargs: Annotated[
        str, typer.Option(help='How files are read, as JSON, for example {"video": {"num_frames": 16}}.')
    ] = "{}",
    modality: Annotated[
        str | None, typer.Option(help="image, video or audio; each by its file's name if unset.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline of one file, in seconds.")] = 600.0,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Files at a time; what the encoders take if unset.")
    ] = None,
) -> None:
    """Encodes files. What is there already is skipped; exit status 1 if one failed."""
    from percept.client.items import ItemSettings
    from percept.offline.encode import plan
    from shared.errors import PerceptError

    try:
        kind = _modality(modality)
        settings = ItemSettings(
            _object("--mm-processor-kwargs", mm_processor_kwargs),
            _object("--media-io-kwargs", media_io_kwargs),
        )
        jobs = plan(files, out)
    except (PerceptError, ValueError) as error:
        print(f"percept encode: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        outcome = asyncio.run(_run(jobs, encoder, settings, kind, timeout, concurrency))
    except PerceptError as error:
        print(f"percept encode: {error}. Start one with: percept encoder --model MODEL", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    _tell(outcome)


def _object(flag: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{flag}: a JSON object is needed")
    return value


def _modality(name: str | None) -> Modality | None:
    match name:
        case None | "image" | "video" | "audio":
            return name
    raise ValueError("--modality: image, video or audio")


async def _run(
    jobs: list[Job],
    address: str,
    settings: ItemSettings,
    modality: Modality | None,
    timeout_s: float,
    concurrency: int | None,
) -> Outcome:
    from percept.client.async_client import AsyncClient
    from percept.client.batch import bar
    from percept.offline.encode import Encoder

    async with AsyncClient(encoder=address, timeout_s=timeout_s, max_concurrency=concurrency) as client:
        with bar("files", sum(len(job.sources) for job in jobs)) as advance:
            return await Encoder(client, settings, modality).run(jobs, advance)


def _tell(outcome: Outcome) -> None:
    for path, reason in outcome.failures:
        print(f"percept encode: {path}: {reason}", file=sys.stderr)
    counts = [f"{outcome.encoded_count} encoded", f"{outcome.present_count} were there"]
    if outcome.failures:
        counts.append(f"{len(outcome.failures)} failed")
    print(", ".join(counts), file=sys.stderr)
    if outcome.failures:
        raise SystemExit(1)
