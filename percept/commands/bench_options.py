"""The options of `percept bench serve`, and what they mean as target, workload and load.

Knows flags. Does not know what is done with the values.
"""

from __future__ import annotations

import inspect
import json
import random
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from percept.bench.load import DEFAULT_WARMUP, Load
from percept.bench.summary import Slo
from percept.bench.target import Target
from percept.bench.workload import Workload
from shared.errors import InvalidRequestError

Options = TypeVar("Options")

DEFAULT_CONCURRENCY = 8
DEFAULT_REQUESTS = 100


def _flag(name: str, help_text: str, **more: Any) -> Any:
    return typer.Option(name, help=help_text, **more)


def _new_seed() -> int:
    """Prompts and pictures that no run has sent before, and no cache holds."""
    return random.SystemRandom().randrange(2**31)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """All options, in the order in which help shows them."""

    url: Annotated[str, _flag("--url", "The server's API. /v1 is added to a bare host.")] = (
        "http://127.0.0.1:8000/v1"
    )
    model: Annotated[str, _flag("--model", "Model's name there; auto: the first it lists.")] = "auto"
    name: Annotated[str, _flag("--name", "What to call it in tables; the model's name if empty.")] = ""
    api_key: Annotated[str | None, _flag("--api-key", "Bearer token.", envvar="PERCEPT_API_KEY")] = None
    concurrency: Annotated[
        int | None,
        _flag(
            "--concurrency",
            f"Closed loop: requests under way. {DEFAULT_CONCURRENCY} if neither this nor --rate is given.",
        ),
    ] = None
    rate: Annotated[
        float | None, _flag("--rate", "Open loop: requests per second, sent whatever the server does.")
    ] = None
    arrivals: Annotated[Literal["poisson", "even"], _flag("--arrivals", "Gaps of an open loop.")] = "poisson"
    requests: Annotated[
        int | None,
        _flag("--requests", f"How many are sent. {DEFAULT_REQUESTS} unless --duration-s is given."),
    ] = None
    duration_s: Annotated[
        float | None, _flag("--duration-s", "Seconds of sending; what is under way then is waited for.")
    ] = None
    warmup: Annotated[int, _flag("--warmup", "Requests before the clock, not counted.")] = DEFAULT_WARMUP
    prompt_tokens: Annotated[int, _flag("--prompt-tokens", "Tokens of text in, about.")] = 128
    output_tokens: Annotated[int, _flag("--output-tokens", "Tokens out.")] = 64
    images: Annotated[int, _flag("--images", "Pictures per request.")] = 0
    image_share: Annotated[
        float, _flag("--image-share", "Part of the requests that carry pictures, 0 to 1.")
    ] = 1.0
    image_size: Annotated[str, _flag("--image-size", "Pixels.", metavar="WIDTHxHEIGHT")] = "448x448"
    image_cell: Annotated[
        int, _flag("--image-cell", "Pixels per square of one colour: 1 is noise, more makes small files.")
    ] = 4
    repeated_images: Annotated[
        int, _flag("--repeated-images", "Take pictures in turn from so many; 0: each is fresh.")
    ] = 0
    repeated_prefix_tokens: Annotated[
        int, _flag("--repeated-prefix-tokens", "Tokens at the head of the text that all prompts share.")
    ] = 0
    text_first: Annotated[bool, _flag("--text-first", "Text before the pictures.")] = False
    seed: Annotated[
        int,
        _flag("--seed", "Of prompts, pictures and arrivals.", show_default="a new one each time"),
    ] = field(default_factory=_new_seed)
    ignore_eos: Annotated[
        bool,
        _flag("--ignore-eos/--no-ignore-eos", "Ask for exactly --output-tokens; some servers refuse."),
    ] = True
    stream_usage: Annotated[
        bool, _flag("--stream-usage/--no-stream-usage", "Ask for token counts; some servers refuse.")
    ] = True
    calibrate: Annotated[
        bool, _flag("--calibrate/--no-calibrate", "Ask two short questions first to learn words per token.")
    ] = True
    extra_body: Annotated[
        str | None, _flag("--extra-body", "JSON object of fields added to each body.", metavar="JSON")
    ] = None
    timeout_s: Annotated[float, _flag("--timeout-s", "Seconds after which a request is an error.")] = 600.0
    slo: Annotated[
        list[str] | None,
        _flag(
            "--slo",
            "What a good request keeps: ttft=500, tpot=50, e2e=5000. May be repeated.",
            metavar="NAME=MS",
        ),
    ] = None
    json: Annotated[Path | None, _flag("--json", "File for all requests and figures.")] = None
    plots: Annotated[Path | None, _flag("--plots", "Folder for PNG and SVG plots.")] = None

    def to_target(self) -> Target:
        """Who is asked."""
        return Target(
            url=self.url if "://" in self.url else f"http://{self.url}",
            model=self.model,
            name=self.name,
            api_key=self.api_key,
            ignore_eos=self.ignore_eos,
            stream_usage=self.stream_usage,
            extra_body=_parse_object(self.extra_body),
            timeout_s=self.timeout_s,
        )

    def to_workload(self) -> Workload:
        """What is asked."""
        width, height = _parse_size(self.image_size)
        return Workload(
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            images=self.images,
            image_share=self.image_share,
            image_width=width,
            image_height=height,
            image_cell=self.image_cell,
            repeated_images=self.repeated_images,
            repeated_prefix_tokens=self.repeated_prefix_tokens,
            text_first=self.text_first,
            seed=self.seed,
        )

    def to_load(self) -> Load:
        """When and how long."""
        concurrency, requests = self.concurrency, self.requests
        if concurrency is None and self.rate is None:
            concurrency = DEFAULT_CONCURRENCY
        if requests is None and self.duration_s is None:
            requests = DEFAULT_REQUESTS
        return Load(
            concurrency=concurrency,
            rate=self.rate,
            requests=requests,
            duration_s=self.duration_s,
            arrivals=self.arrivals,
            warmup=self.warmup,
            seed=self.seed,
        )

    def to_slo(self) -> Slo | None:
        """What a good request keeps."""
        return parse_slo(self.slo or ())


def as_command(run: Callable[[Options], None], options: type[Options]) -> Callable[..., None]:
    """Makes a typer command of `run`: an option for each field of the dataclass `options`."""

    def command(**given: Any) -> None:
        run(options(**given))

    hints = typing.get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default if each.default_factory is MISSING else each.default_factory(),
            annotation=hints[each.name],
        )
        for each in fields(options)  # type: ignore[arg-type]
    ]
    command.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def parse_slo(given: typing.Iterable[str]) -> Slo | None:
    """Reads "ttft=500" and its like; None where nothing is asked.

    Raises:
        InvalidRequestError: another name, or no number.
    """
    names = {"ttft": "ttft_ms", "tpot": "tpot_ms", "e2e": "e2e_ms"}
    limits: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            limits[names[name]] = float(number.removesuffix("ms"))
        except (KeyError, ValueError):
            raise InvalidRequestError(f"--slo {text}: write ttft=MS, tpot=MS or e2e=MS") from None
    return Slo(**limits) if limits else None


def _parse_size(text: str) -> tuple[int, int]:
    width, separator, height = text.lower().partition("x")
    try:
        return int(width), int(height if separator else width)
    except ValueError:
        raise InvalidRequestError(f"--image-size {text}: write WIDTHxHEIGHT, 448x448") from None


def _parse_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise InvalidRequestError(f"--extra-body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("--extra-body must be a JSON object")
    return value
