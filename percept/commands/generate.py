"""`percept generate`: a file of requests in OpenAI's batch format, answered by a running gateway.

Knows the command line and what is told on it. The work is in `percept/offline/`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from percept.offline.answers_file import AnswersFile
    from percept.offline.generate import Counts, Source
    from percept.offline.requests_file import RequestLine


def generate(
    requests: Annotated[
        Path, typer.Option("--input", help="Requests, one JSON object a line (OpenAI's batch format).")
    ],
    output: Annotated[Path, typer.Option(help="Answers, one a line. What it has is not asked again.")],
    url: Annotated[str, typer.Option(help="The gateway.")] = "http://127.0.0.1:8000",
    media_folder: Annotated[
        Path | None,
        typer.Option(help="Folder of the relative paths in requests; their files are sent with them."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 32,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what has an answer other than 200.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Longest wait for one answer, in seconds.")
    ] = 600.0,
    api_key: Annotated[
        str | None, typer.Option(envvar="PERCEPT_API_KEY", help="Key, where the gateway asks for one.")
    ] = None,
) -> None:
    """Answers requests. Exit status 1 if one failed, 2 if the input cannot be used; then nothing was sent."""
    from percept.commands.given import check_gateway
    from percept.offline.answers_file import AnswersError, AnswersFile
    from percept.offline.generate import Source
    from percept.offline.inline_media import MediaFolder
    from percept.offline.persistent import GatewayGoneError
    from percept.offline.requests_file import RequestsError, read_requests

    try:
        check_gateway(url, api_key)
        folder = MediaFolder(media_folder) if media_folder is not None else None
        lines = read_requests(requests, folder.check if folder is not None else lambda body: None)
        answers = AnswersFile(output, retry_failed=retry_failed)
    except (ValueError, RequestsError, AnswersError) as error:
        _stop(str(error), 2)
    left = [line for line in lines if line.custom_id not in answers.done]
    with answers:
        try:
            counts = asyncio.run(
                _run(Source(requests, folder), answers, left, url, api_key, timeout, concurrency)
            )
        except (GatewayGoneError, RequestsError) as error:
            _stop(f"{error}\nThe same command goes on where this one stopped.", 1)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
    _tell(counts, len(lines) - len(left))


async def _run(
    source: Source,
    answers: AnswersFile,
    lines: Sequence[RequestLine],
    url: str,
    api_key: str | None,
    timeout_s: float,
    concurrency: int,
) -> Counts:
    from percept.client.batch import bar
    from percept.offline.generate import Asking
    from percept.offline.persistent import open_http

    async with open_http(url, api_key, timeout_s, concurrency) as http:
        with bar("requests", len(lines)) as advance:
            return await Asking(http, source, answers).run(lines, concurrency, advance)


def _tell(counts: Counts, present_count: int) -> None:
    told = [f"{counts.answered} answered", f"{present_count} were there"]
    if counts.failed:
        told.append(f"{counts.failed} failed: the output has their errors, --retry-failed asks again")
    print(", ".join(told), file=sys.stderr)
    if counts.failed:
        raise SystemExit(1)


def _stop(reason: str, status: int) -> NoReturn:
    print("\n".join(f"percept generate: {line}" for line in reason.splitlines()), file=sys.stderr)
    raise SystemExit(status)
