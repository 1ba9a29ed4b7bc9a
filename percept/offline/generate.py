"""A file of requests through a gateway, its answers into a file.

Knows bodies and answers; what is tried again is `persistent.py`'s. Does not know the command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from percept.offline.answers_file import AnswersFile
from percept.offline.inline_media import MediaFolder
from percept.offline.persistent import BrokenOffError, answered
from percept.offline.requests_file import RequestLine, read_body


@dataclass(slots=True)
class Counts:
    """Answers of this run: those with status 200, and others."""

    answered: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """Where bodies come from.

    Attributes:
        path: the file of requests.
        media: folder whose files are put into bodies, or None.
    """

    path: Path
    media: MediaFolder | None

    def body(self, line: RequestLine) -> dict[str, Any]:
        """A request's body, ready to be sent.

        Raises:
            ValueError: a file that it names cannot be read.
        """
        body = read_body(self.path, line)
        if self.media is not None:
            self.media.inline(body)
        return body


class Asking:
    """Sends requests to one gateway, several at a time."""

    def __init__(self, http: httpx.AsyncClient, source: Source, answers: AnswersFile) -> None:
        """
        Args:
            http: its base URL is the gateway's.
        """
        self._http = http
        self._source = source
        self._answers = answers
        self.counts = Counts()

    async def run(
        self, lines: Sequence[RequestLine], concurrency: int, advance: Callable[[], None]
    ) -> Counts:
        """Asks all and writes each answer as it comes.

        Args:
            advance: called for each answer.

        Raises:
            GatewayGoneError: nobody answers.
            RequestsError: the file of requests changed meanwhile.
        """
        left = iter(lines)

        async def lane() -> None:
            for line in left:
                await self._ask(line)
                advance()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(lines))):
                    group.create_task(lane())
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from None
        return self.counts

    async def _ask(self, line: RequestLine) -> None:
        try:
            body = await asyncio.to_thread(self._source.body, line)
        except ValueError as error:
            self._fail(line, "invalid_media", str(error))
            return
        try:
            response = await answered(self._http, lambda: self._http.post(line.url, json=body))
        except httpx.TimeoutException:
            self._fail(line, "timeout", "the gateway did not answer in time")
            return
        except BrokenOffError as error:
            self._fail(line, "broken_off", str(error))
            return
        self._write(line, response)

    def _write(self, line: RequestLine, response: httpx.Response) -> None:
        try:
            body = response.json()
        except ValueError:
            body = {"error": {"message": response.text[:1000], "type": "invalid_response"}}
        self._answers.append(
            line.custom_id, response.status_code, response.headers.get("x-request-id", ""), body
        )
        if response.status_code == httpx.codes.OK:
            self.counts.answered += 1
        else:
            self.counts.failed += 1

    def _fail(self, line: RequestLine, code: str, message: str) -> None:
        self._answers.append(line.custom_id, 0, "", None, {"code": code, "message": message})
        self.counts.failed += 1
