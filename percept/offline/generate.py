"""A file of requests through a gateway, its answers into a file.

Knows HTTP's side of it: what is tried again and when to give up. Does not know the
command line.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from percept.offline.answers_file import AnswersFile
from percept.offline.inline_media import MediaFolder
from percept.offline.requests_file import RequestLine, read_body

_CONNECT_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 60.0
_FIRST_PAUSE_S = 0.25
_MAX_ABSENCES = 8
"""Tries of a request while nobody answers, pauses doubling: about a minute."""


class GatewayGoneError(Exception):
    """Nobody answers any more. What is done is in the file; the same command goes on from there."""


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
            response = await self._post(line.url, body)
        except httpx.TimeoutException:
            self._fail(line, "timeout", "the gateway did not answer in time")
            return
        self._write(line, response)

    async def _post(self, url: str, body: dict[str, Any]) -> httpx.Response:
        """The answer, after as many tries as it takes: a full gateway says when to come back."""
        absences = 0
        while True:
            try:
                response = await self._http.post(url, json=body)
            except httpx.ConnectTimeout as error:
                fault: Exception = error
            except httpx.TimeoutException:
                raise
            except httpx.TransportError as error:
                fault = error
            else:
                if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
                    await _pause(_retry_after(response))
                    continue
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return response
                fault = GatewayGoneError(_message(response))
            absences += 1
            if absences >= _MAX_ABSENCES:
                raise GatewayGoneError(f"{self._http.base_url}: {fault}") from fault
            await _pause(_FIRST_PAUSE_S * 2**absences)

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


async def _pause(seconds: float) -> None:
    # Apart from each other, so that they do not all come back at once.
    await asyncio.sleep(min(seconds, _LONGEST_PAUSE_S) * random.uniform(1.0, 1.5))


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", "1")))
    except ValueError:
        return 1.0


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase


def open_http(url: str, api_key: str | None, timeout_s: float, concurrency: int) -> httpx.AsyncClient:
    """A client of the gateway at `url`.

    Args:
        timeout_s: longest silence before an answer, in seconds.
    """
    return httpx.AsyncClient(
        base_url=url.rstrip("/").removesuffix("/v1"),
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S, pool=None),
        limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        trust_env=False,
    )
