"""`percept bench`: puts load on any OpenAI-compatible server and says how it bore it.

Knows the terminal: options, progress, tables, files. What is measured and how, the
package `percept.bench` knows.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from percept.bench.plots import check_plots_possible, draw_comparison, draw_run, draw_runs
from percept.bench.probe import BenchError
from percept.bench.progress import RunProgress
from percept.bench.records import RunResult
from percept.bench.report import compare_report, run_report
from percept.bench.results_file import read_result, write_result
from percept.bench.run import Report, run_load
from percept.bench.summary import summarise
from percept.commands.bench_options import ServeOptions, as_command
from shared.errors import PerceptError

SUMMARIES = {
    "serve": "Put load on a server and measure it.",
    "compare": "Show several results side by side, as ratios to the first.",
}


def bench_app() -> typer.Typer:
    """The commands below `percept bench`."""
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    app.command("serve", help=SUMMARIES["serve"])(as_command(serve, ServeOptions))
    app.command("compare", help=SUMMARIES["compare"])(compare)
    return app


@contextmanager
def _mistakes_in_one_line(command: str) -> Iterator[None]:
    """Ends with status 2 for what was asked wrongly, with 1 for a server that cannot be measured."""
    try:
        yield
    except PerceptError as error:
        print(f"percept bench {command}: {_as_flag(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except (BenchError, OSError) as error:
        print(f"percept bench {command}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _as_flag(error: PerceptError) -> str:
    """What was wrong, with the flag's name where a setting is to blame."""
    if error.param is None:
        return str(error)
    flag = "image-size" if error.param in ("image_width", "image_height") else error.param.replace("_", "-")
    return f"--{flag}{str(error).removeprefix(error.param)}"


def serve(options: ServeOptions) -> None:
    """Measures, prints, writes. Exit status 1 when nothing was answered, 130 when interrupted."""
    with _mistakes_in_one_line("serve"):
        if options.plots is not None:
            check_plots_possible()
        if options.json is not None:
            _check_writable(options.json)
        slo = options.to_slo()
        result = _measure(options)
        summary = summarise(result, slo)
        Console(highlight=False, soft_wrap=True).print(run_report(result, summary))
        written = [options.json] if options.json else []
        if options.json is not None:
            write_result(options.json, result, slo)
        if options.plots is not None:
            written += draw_run(options.plots, result)
        _say_written(written)
    if result.interrupted:
        raise SystemExit(130)
    if not summary.overall.answered:
        raise SystemExit(1)


def _check_writable(path: Path) -> None:
    """Refuses before anything is measured.

    Raises:
        OSError: the file cannot be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written", str(path))


def _measure(options: ServeOptions) -> RunResult:
    import uvloop

    target, workload, load = options.to_target(), options.to_workload(), options.to_load()

    async def run(report: Report) -> RunResult:
        stop = asyncio.Event()
        # The first interrupt ends the run and shows what there is; the second ends all.
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, _once(stop, loop))
        return await run_load(
            target, workload, load, on_progress=report, stop=stop, calibrate=options.calibrate
        )

    with RunProgress() as progress:
        return uvloop.run(run(progress.show))


def _once(stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    def interrupted() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop.set()

    return interrupted


def compare(
    results: Annotated[list[Path], typer.Argument(help="Files that `percept bench serve --json` wrote.")],
    plots: Annotated[Path | None, typer.Option(help="Folder for PNG and SVG plots.")] = None,
    slo: Annotated[
        list[str] | None, typer.Option(help="Judge all by this SLO instead of their own: ttft=500.")
    ] = None,
) -> None:
    """Prints the figures of several runs side by side."""
    from percept.commands.bench_options import parse_slo

    with _mistakes_in_one_line("compare"):
        if plots is not None:
            check_plots_possible()
        limits = parse_slo(slo or [])
        files = [read_result(path) for path in results]
        names = distinct_names([file.result.name for file in files], results)
        summaries = [summarise(file.result, limits or file.summary.slo) for file in files]
        Console(highlight=False, soft_wrap=True).print(compare_report(names, summaries))
        if plots is not None:
            runs = {name: file.result for name, file in zip(names, files, strict=True)}
            drawn = draw_comparison(plots, dict(zip(names, summaries, strict=True)))
            _say_written(drawn + draw_runs(plots, runs))


def distinct_names(names: list[str], paths: list[Path]) -> list[str]:
    """What to call each run: the target's name, or the file's where names repeat, or its whole path."""
    for candidates in (names, [path.stem for path in paths], [str(path) for path in paths]):
        if len(set(candidates)) == len(candidates):
            return candidates
    return [f"{path} ({place})" for place, path in enumerate(paths, 1)]


def _say_written(paths: list[Path]) -> None:
    for path in paths:
        print(f"written: {path}", file=sys.stderr)
