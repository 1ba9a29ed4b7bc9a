"""How far a run is, on a terminal as a bar, elsewhere as a line now and then.

Knows the terminal. Does not know the run.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from percept.bench.run import Progress

# Each drawing takes CPU that the server could use.
REFRESHES_PER_SECOND = 1
LOOK_EVERY_S = 0.2
LINE_EVERY_S = 10.0


class RunProgress:
    """Shows progress on standard error. A context manager: it takes the bar away."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._shown_at = 0.0
        self._phase = ""
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=REFRESHES_PER_SECOND,
        )
        self._task = self._bars.add_task("", what="", total=None)

    def __enter__(self) -> RunProgress:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def show(self, progress: Progress) -> None:
        """Shows a phase at once, and what happens in it not more often than people can read."""
        now = time.monotonic()
        every = LOOK_EVERY_S if self._console.is_terminal else LINE_EVERY_S
        begins = progress.phase != self._phase
        if not begins and now - self._shown_at < every:
            return
        self._shown_at, self._phase = now, progress.phase
        if self._console.is_terminal:
            self._bars.update(
                self._task,
                description=progress.phase,
                completed=progress.done,
                total=progress.total,
                what=in_words(progress),
            )
        else:
            self._console.print(f"{progress.phase} {in_words(progress)}".rstrip())


def in_words(progress: Progress) -> str:
    """What has happened so far in a phase."""
    if not progress.done:
        return ""
    of = f" of {progress.total}" if progress.total is not None else ""
    text = f"{progress.done}{of}, {progress.output_tokens / progress.elapsed_s:.0f} tokens/s"
    return f"{text}, {progress.failed} failed" if progress.failed else text
