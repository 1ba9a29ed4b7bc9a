"""The command line: `percept up`, one command for each service, and small tools.

Knows which commands there are. What a command needs is imported when it is the
one that runs, so that `percept --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

SUMMARIES = {
    "up": "Start gateway, encoders and LLMs on this machine.",
    "encoder": "Start one encoder service: media in, embeddings out.",
    "llm": "Start one LLM service: prompts in, tokens out.",
    "gateway": "Start one gateway: the OpenAI API in front.",
    "chat": "Ask a running gateway about text, pictures, videos or sound.",
    "transcribe": "Write down what is said in recordings (needs a gateway).",
    "encode": "Turn media files into embeddings (needs an encoder).",
    "generate": "Answer a file of requests (needs a gateway).",
    "models": "List the model families and what each takes.",
    "bench": "Put load on an OpenAI-compatible server and measure it.",
    "health": "Say whether a service is ready: exit status 0 or 1.",
    "version": "Print the version.",
}


def _load(name: str) -> Callable[..., Any]:
    """Imports one command's function, with the options in its signature."""
    if name == "up":
        from percept.commands.up import up_command

        return up_command()
    if name in ("encoder", "llm", "gateway"):
        from percept.commands.serve import serve_command

        return serve_command(name)
    if name == "chat":
        from percept.commands.chat import chat

        return chat
    if name == "transcribe":
        from percept.commands.transcribe import transcribe

        return transcribe
    if name == "encode":
        from percept.commands.encode import encode

        return encode
    if name == "generate":
        from percept.commands.generate import generate

        return generate
    if name == "models":
        from percept.commands.models import models

        return models
    if name == "health":
        from percept.commands.health import health

        return health
    return _version


def _version() -> None:
    from importlib.metadata import version

    typer.echo(version("percept"))


def _show_version(wanted: bool) -> None:
    if wanted:
        _version()
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Takes the options that stand before a command."""


def _stub() -> None:
    """Stands for a command that does not run this time."""


def build_app(invoked: str | None) -> typer.Typer:
    """Builds the application; of all commands only `invoked` has its options."""
    app = typer.Typer(
        name="percept",
        help="Serves multimodal models with the encoders apart from the LLM.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback()(_root)
    for name, summary in SUMMARIES.items():
        if name == invoked == "bench":
            from percept.commands.bench import bench_app

            app.add_typer(bench_app(), name=name, help=summary)
            continue
        function = _load(name) if name == invoked else _stub
        app.command(name, help=summary)(function)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. Exit status 2 stands for settings that cannot be used."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    invoked = next((word for word in given if not word.startswith("-")), None)
    build_app(invoked)(args=given, prog_name="percept")


if __name__ == "__main__":
    main()
