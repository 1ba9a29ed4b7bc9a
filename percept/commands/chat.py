"""`percept chat`: one question to a running gateway, the answer as it comes.

Knows the OpenAI API as any client does. Imports no service.
"""

from __future__ import annotations

import asyncio
import base64
import json
import mimetypes
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from percept.commands.given import check_gateway, check_texts
from percept.commands.output import OutputError, say
from percept.gateway_url import gateway_url
from percept.offline.persistent import BROKEN_OFF, broken_off

TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 5.0

MAX_FILE_BYTE_COUNT = 1024**3
"""Of a file that is asked about. It goes into a request's body, which is in memory as a whole."""


_PART = re.compile(r"messages\[\d+\]\.content\[(\d+)\]")
"""Where an error's `param` names the part of a message that it is about."""


class ChatError(Exception):
    """The question could not be answered. `str(error)` says why, `param` which part of the request."""

    def __init__(self, reason: str, param: str | None = None) -> None:
        super().__init__(reason)
        self.param = param


def chat(
    question: Annotated[str, typer.Argument(help="What to ask.", metavar="QUESTION")],
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image", help="Picture to ask about: a file or a URL. May be repeated.", metavar="FILE"
        ),
    ] = None,
    video: Annotated[
        list[str] | None,
        typer.Option("--video", help="Video to ask about: a file or a URL. May be repeated.", metavar="FILE"),
    ] = None,
    audio: Annotated[
        list[str] | None,
        typer.Option(
            "--audio", help="Recording to ask about: a file or a URL. May be repeated.", metavar="FILE"
        ),
    ] = None,
    url: Annotated[str, typer.Option(help="The gateway.")] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="Served model name; the gateway's first if unset.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="PERCEPT_API_KEY", help="Key, where the gateway asks for one.")
    ] = None,
) -> None:
    """Asks the gateway and writes the answer as it comes."""
    options = {"model": model, "max_completion_tokens": max_tokens, "temperature": temperature}
    files = {"image": image or [], "video": video or [], "audio": audio or []}
    try:
        check_gateway(url, api_key)
        check_texts(**{"QUESTION": question, "--system": system, "--model": model})
        body = build_body(question, files, system, options)
        asyncio.run(_print_answer(gateway_url(url), body, api_key))
    except ValueError as error:
        print(f"percept chat: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OutputError as error:
        print(f"percept chat: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except ChatError as error:
        print(f"percept chat: {_file_of(error, files)}{error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def build_body(
    question: str, files: Mapping[str, Sequence[str]], system: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Builds the request: pictures first, then videos, then recordings, then the question.

    Args:
        files: files and URLs by modality, in the order in which they go into the request.

    Raises:
        ChatError: a file cannot be read.
    """
    content: list[dict[str, Any]] = [
        {"type": f"{modality}_url", f"{modality}_url": {"url": _as_url(file, f"--{modality}")}}
        for modality, named in files.items()
        for file in named
    ]
    content.append({"type": "text", "text": question})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    given = {name: value for name, value in options.items() if value is not None}
    return {"messages": messages, "stream": True, **given}


def _file_of(error: ChatError, files: Mapping[str, Sequence[str]]) -> str:
    """The flag and the file that a refusal is about, as "--image FILE: "; "" where it is about none."""
    flags = [f"--{modality} {file}: " for modality, named in files.items() for file in named]
    part = _PART.match(error.param or "")
    return flags[int(part[1])] if part and int(part[1]) < len(flags) else ""


def _as_url(file: str, flag: str) -> str:
    if file.startswith(("http://", "https://", "data:")):
        return file
    path = Path(file)
    try:
        if path.stat().st_size > MAX_FILE_BYTE_COUNT:
            raise ChatError(f"{flag} {file}: the file is larger than {MAX_FILE_BYTE_COUNT} bytes")
        payload = path.read_bytes()
    except OSError as error:
        raise ChatError(f"{flag} {file}: {error.strerror}") from error
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(payload).decode()}"


async def _print_answer(url: str, body: dict[str, Any], api_key: str | None) -> None:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    ended = False
    async for text in stream_answer(url, body, headers):
        say(text)
        ended = text.endswith("\n")
    if not ended:
        say(os.linesep)


async def stream_answer(url: str, body: dict[str, Any], headers: dict[str, str]) -> AsyncIterator[str]:
    """Yields the answer's text piece by piece.

    Raises:
        ChatError: no gateway there, a refusal, or an answer that broke off.
    """
    timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        async with (
            httpx.AsyncClient(timeout=timeout) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as response,
        ):
            if response.status_code != httpx.codes.OK:
                await response.aread()
                raise _refusal(response)
            async for text in _texts(response):
                yield text
    except httpx.ConnectError as error:
        raise ChatError(f"no gateway at {url}: {error}. Start one with: percept up") from error
    except BROKEN_OFF as error:
        raise ChatError(broken_off(error)) from error
    except httpx.HTTPError as error:
        raise ChatError(f"{url}: {type(error).__name__} {error}".rstrip()) from error


async def _texts(response: httpx.Response) -> AsyncIterator[str]:
    """Reads server-sent events up to [DONE]."""
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise _refused(event["error"])
        for choice in event.get("choices", ()):
            if text := choice.get("delta", {}).get("content"):
                yield text
    raise ChatError("the answer broke off")


def _refusal(response: httpx.Response) -> ChatError:
    try:
        refused = _refused(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        refused = ChatError(response.text[:200] or response.reason_phrase)
    retry_after = response.headers.get("Retry-After")
    again = f" (try again in {retry_after} s)" if retry_after else ""
    return ChatError(f"{response.status_code}: {refused}{again}", refused.param)


def _refused(error: Any) -> ChatError:
    """An error object of OpenAI's form, which other servers may not keep to."""
    if not isinstance(error, dict):
        return ChatError(str(error))
    param = error.get("param")
    return ChatError(str(error.get("message", error)), param if isinstance(param, str) else None)
