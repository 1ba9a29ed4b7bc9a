"""What `percept up` shows: loading bars on a terminal, plain lines elsewhere.

Knows how lines look. Does not know what they mean, but for the percentages that
services write while they load.
"""

from __future__ import annotations

import re
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

_PERCENT = re.compile(r"(?P<what>loading .*?)\s*(?P<percent>\d{1,3}(?:\.\d+)?)\s*%")
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue")


class UpConsole:
    """Shows the services' lines and progress. A context manager: it ends the bars."""

    def __init__(self, services: tuple[str, ...], console: Console | None = None) -> None:
        self._console = console or Console(stderr=False, highlight=False, soft_wrap=True)
        self._width = max(len(name) for name in services)
        self._colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(services)}
        self._bars: Progress | None = self._make_bars() if self._console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._ready: set[str] = set()
        if self._bars is not None:
            for name in services:
                self._tasks[name] = self._bars.add_task(name.ljust(self._width), total=100, what="starting")

    def _make_bars(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=4,
        )

    def __enter__(self) -> UpConsole:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_bars()

    def end_bars(self) -> None:
        """Takes the loading bars away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def line(self, service: str, text: str) -> None:
        """Shows a service's line, or moves its bar."""
        progress = _PERCENT.search(text)
        if progress is not None and self._bars is not None:
            self._bars.update(
                self._tasks[service], completed=float(progress["percent"]), what=escape(progress["what"])
            )
            return
        self._show(service, text)

    def ready(self, service: str) -> None:
        """Notes that a service is ready."""
        self._ready.add(service)
        if self._bars is not None:
            self._bars.update(self._tasks[service], completed=100, what="ready")
        else:
            self._show(service, "ready")

    def crashed(self, service: str, reason: str, wait_s: float) -> None:
        """Tells that a service starts again."""
        self._show(service, f"{reason}; starting it again in {wait_s:g} s")

    def say(self, text: str) -> None:
        """Shows a line of our own."""
        self._console.print(Text(text))

    def _show(self, service: str, text: str) -> None:
        prefix = Text(f"{service.ljust(self._width)} | ", style=self._colours[service])
        self._console.print(prefix.append(text, style="default"))
