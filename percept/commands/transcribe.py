"""`percept transcribe`: what is said in recordings, by a running gateway.

Knows the command line and OpenAI's API as any client does. Imports no service.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from percept.commands.output import OutputError, say
from shared.speech.judging import INCREMENT

if TYPE_CHECKING:
    import httpx

    from percept.offline.transcribe import Outcome, Question, Upload

Format = Literal["text", "json", "verbose_json", "srt", "vtt"]


class TranscribeError(Exception):
    """A recording could not be transcribed. `str(error)` says why."""


Files = Annotated[
    list[Path],
    typer.Argument(help="Recordings, videos for their sound; folders too, with --out.", metavar="FILE"),
]
Form = Annotated[Format, typer.Option("--format", help="What is written.")]
Language = Annotated[
    str | None, typer.Option(help="What is spoken, a code or an English name; heard if unset.")
]
Said = Annotated[str | None, typer.Option(help="What was said before, or how words are spelt.")]
English = Annotated[bool, typer.Option("--translate", help="Write English.")]
Words = Annotated[bool, typer.Option("--words", help="Times of words too; the format is verbose_json.")]
Temperature = Annotated[float | None, typer.Option(min=0, max=1, help="0 is greedy, and the default.")]
Increment = Annotated[
    float | None,
    typer.Option(
        "--temperature-increment-on-fallback",
        min=0,
        max=1,
        help="What fails is tried again so much higher, where the text does not come bit by bit; 0: never.",
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for one file of each recording; what is there already is skipped.")
]
Url = Annotated[str, typer.Option(help="The gateway.")]
Model = Annotated[str | None, typer.Option(help="Served model name; the gateway's first if unset.")]
AtOnce = Annotated[int, typer.Option(min=1, help="Recordings at a time, with --out.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Longest silence of the gateway, in seconds.")]
Key = Annotated[
    str | None, typer.Option(envvar="PERCEPT_API_KEY", help="Key, where the gateway asks for one.")
]


def transcribe(
    files: Files,
    form: Form = "text",
    language: Language = None,
    prompt: Said = None,
    translate: English = False,
    words: Words = False,
    temperature: Temperature = None,
    increment: Increment = None,
    out: Out = None,
    url: Url = "http://127.0.0.1:8000",
    model: Model = None,
    concurrency: AtOnce = 4,
    timeout: Timeout = 600.0,
    api_key: Key = None,
) -> None:
    """Writes down what is said: to the screen as it comes, or into files. Exit status 1 if one failed."""
    from percept.commands.given import check_gateway, check_texts
    from percept.offline.persistent import GatewayGoneError
    from percept.offline.transcribe import SUFFIXES, plan

    kind: Format = "verbose_json" if words else form
    options = {"language": language, "prompt": prompt, "model": model}
    numbers = {"temperature": temperature, INCREMENT: increment}
    question = _question(kind, words, translate, numbers, options)
    try:
        check_gateway(url, api_key)
        check_texts(**{f"--{name}": value for name, value in options.items()})
        if out is None:
            asyncio.run(_print_all(files, question, url, api_key, timeout))
            return
        targets = plan(files, out, SUFFIXES[kind])
        _tell(asyncio.run(_write_all(targets, question, url, api_key, timeout, concurrency)))
    except (TranscribeError, GatewayGoneError, OutputError) as error:
        _stop(str(error), 1)
    except ValueError as error:
        _stop(str(error), 2)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _question(
    kind: Format,
    words: bool,
    translates: bool,
    numbers: dict[str, float | None],
    options: dict[str, str | None],
) -> Question:
    from percept.offline.transcribe import Question

    fields: dict[str, str | list[str]] = {"response_format": kind}
    fields |= {name: value for name, value in options.items() if value is not None}
    fields |= {name: str(value) for name, value in numbers.items() if value is not None}
    if words:
        fields["timestamp_granularities[]"] = ["word", "segment"]
    return Question(translates, fields)


async def _print_all(
    files: list[Path], question: Question, url: str, api_key: str | None, timeout_s: float
) -> None:
    import httpx

    from percept.offline.persistent import BROKEN_OFF, broken_off, open_http
    from percept.offline.transcribe import open_recording

    async with open_http(url, api_key, timeout_s, 1) as http:
        for file in files:
            try:
                with open_recording(file) as recording:
                    await _print_one(http, file, recording, question)
            except httpx.ConnectError as error:
                raise TranscribeError(
                    f"no gateway at {http.base_url}: {error}. Start one with: percept up"
                ) from None
            except BROKEN_OFF as error:
                raise TranscribeError(f"{file}: {broken_off(error)}") from None
            except httpx.HTTPError as error:
                raise TranscribeError(f"{http.base_url}: {type(error).__name__} {error}".rstrip()) from None
            except BrokenPipeError:
                raise
            except OSError as error:
                raise TranscribeError(f"{file}: {error.strerror}") from None


async def _print_one(http: httpx.AsyncClient, file: Path, recording: Upload, question: Question) -> None:
    if question.fields["response_format"] != "text":
        response = await http.post(question.path, data=question.fields, files={"file": recording})
        if response.status_code != 200:
            raise _refusal(file, response)
        say(response.text if response.text.endswith("\n") else response.text + "\n")
        return
    async with aclosing(_texts(http, file, recording, question)) as texts:
        async for text in texts:
            say(text)
    say("\n")


async def _texts(
    http: httpx.AsyncClient, file: Path, recording: Upload, question: Question
) -> AsyncGenerator[str]:
    """The text as it comes."""
    fields = {**question.fields, "stream": "true"}
    async with http.stream("POST", question.path, data=fields, files={"file": recording}) as response:
        if response.status_code != 200:
            await response.aread()
            raise _refusal(file, response)
        async for line in response.aiter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise TranscribeError(f"{file}: {event['error'].get('message', event['error'])}")
            if event["type"] == "transcript.text.done":
                return
            yield event["delta"]
    raise TranscribeError(f"{file}: the answer broke off")


def _refusal(file: Path, response: httpx.Response) -> TranscribeError:
    from percept.offline.persistent import message_of

    return TranscribeError(f"{file}: {response.status_code}: {message_of(response)}")


async def _write_all(
    targets: dict[Path, Path],
    question: Question,
    url: str,
    api_key: str | None,
    timeout_s: float,
    concurrency: int,
) -> Outcome:
    from percept.client.batch import bar
    from percept.offline.persistent import open_http
    from percept.offline.transcribe import transcribe_all

    async with open_http(url, api_key, timeout_s, concurrency) as http:
        with bar("recordings", len(targets)) as advance:
            return await transcribe_all(http, targets, question, concurrency, advance)


def _tell(outcome: Outcome) -> None:
    for path, reason in outcome.failures:
        print(f"percept transcribe: {path}: {reason}", file=sys.stderr)
    told = [f"{outcome.written_count} transcribed", f"{outcome.present_count} were there"]
    if outcome.failures:
        told.append(f"{len(outcome.failures)} failed")
    print(", ".join(told), file=sys.stderr)
    if outcome.failures:
        raise SystemExit(1)


def _stop(reason: str, status: int) -> NoReturn:
    print(f"percept transcribe: {reason}", file=sys.stderr)
    raise SystemExit(status)
