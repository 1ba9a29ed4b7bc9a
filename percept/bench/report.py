"""What people read: the table of a run, and several runs side by side.

Knows how figures look. Does not compute them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from percept.bench.load import Load
from percept.bench.records import RunResult
from percept.bench.statistics import Distribution
from percept.bench.summary import GroupSummary, Slo, Summary
from percept.bench.workload import Workload

LATENCIES = {
    "ttft_ms": ("TTFT", "time to first token"),
    "tpot_ms": ("TPOT", "time per output token after it"),
    "itl_ms": ("ITL", "gap between deltas"),
    "e2e_ms": ("E2E", "whole answer"),
}
COLUMNS = ("mean", "p50", "p90", "p99", "max")
ERROR_LINES = 8


def run_report(result: RunResult, summary: Summary) -> RenderableType:
    """The whole report of one run."""
    overall = summary.overall
    lines = [
        f"{escape(result.name)} at {escape(result.url)}",
        f"{describe_workload(result.workload)}; seed {result.workload.seed}",
        f"{describe_load(result.load)}; {result.duration_s:.1f} s",
        "",
        f"[bold]{overall.answered}[/] answered, {_failures(overall)}",
        f"[bold]{overall.requests_per_s:.2f}[/] requests/s, "
        f"[bold]{overall.output_tokens_per_s:.1f}[/] output tokens/s, "
        f"{overall.total_tokens_per_s:.1f} tokens/s in and out",
    ]
    parts: list[RenderableType] = [Text.from_markup(line) for line in lines]
    parts += [Text.from_markup(line) for line in _tokens_lines(overall)]
    parts.append(_latencies(summary))
    parts += [Text.from_markup(line) for line in (*_goodput_lines(summary), _own_cost(result))]
    parts += [Text(f"error, {count} x {text}", style="red") for text, count in _first_errors(overall)]
    parts += [Text(f"Note: {text}.", style="yellow") for text in summary.warnings]
    return Group(*parts)


def describe_workload(workload: Workload) -> str:
    """A workload in one line."""
    text = f"about {workload.prompt_tokens} tokens in, {workload.output_tokens} out"
    if workload.repeated_prefix_tokens:
        text += f", the first {workload.repeated_prefix_tokens} the same in all"
    if not workload.images or not workload.image_share:
        return f"{text}; no pictures"
    origin = f"from a pool of {workload.repeated_images}" if workload.repeated_images else "each fresh"
    share = "" if workload.image_share == 1 else f" in {workload.image_share:.0%} of requests"
    size = f"{workload.image_width}x{workload.image_height}"
    return f"{text}; {workload.images} x {size} pictures{share}, {origin}"


def describe_load(load: Load) -> str:
    """A load in one line."""
    how = (
        f"open loop, {load.rate:g} requests/s, {load.arrivals} arrivals"
        if load.rate is not None
        else f"closed loop, concurrency {load.concurrency}"
    )
    return f"{how}, {load.warmup} to warm up"


def _failures(group: GroupSummary) -> str:
    return f"[bold red]{group.failed} failed[/]" if group.failed else "none failed"


def _tokens_lines(group: GroupSummary) -> list[str]:
    if group.input_tokens is None or group.output_tokens is None:
        return []
    cached = group.cached_tokens.mean if group.cached_tokens else 0
    hint = f", {cached:.0f} of them cached" if cached >= 1 else ""
    return [f"mean: {group.input_tokens.mean:.0f} tokens in{hint}, {group.output_tokens.mean:.0f} out"]


def _goodput_lines(summary: Summary) -> list[str]:
    goodput = summary.overall.goodput
    if goodput is None or summary.slo is None:
        return []
    share = f"{goodput.share:.1%} of requests kept"
    return [f"Goodput [bold]{goodput.requests_per_s:.2f}[/] requests/s: {share} {describe_slo(summary.slo)}"]


def describe_slo(slo: Slo) -> str:
    """An SLO in one line."""
    limits = {"TTFT": slo.ttft_ms, "TPOT": slo.tpot_ms, "E2E": slo.e2e_ms}
    return ", ".join(f"{name} <= {limit:g} ms" for name, limit in limits.items() if limit is not None)


def _own_cost(result: RunResult) -> str:
    cost = result.generator
    text = f"[dim]The generator took {cost.cpu_share:.1%} of a core, its clock was read at most "
    text += f"{cost.loop_lag_max_ms:.1f} ms late"
    if result.load.rate is not None:
        text += f", sends at most {cost.send_lag_max_ms:.1f} ms"
    return text + "[/]"


def _first_errors(group: GroupSummary) -> list[tuple[str, int]]:
    errors = list(group.errors.items())
    rest = sum(count for _, count in errors[ERROR_LINES:])
    return errors[:ERROR_LINES] + ([("others, see the JSON file", rest)] if rest else [])


def _latencies(summary: Summary) -> Table:
    """Latencies in rows: of all, or of each kind where there are two."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ms", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    groups: dict[str, GroupSummary] = {"": summary.overall}
    if len(summary.by_kind) > 1:
        groups |= {f" {kind}": group for kind, group in summary.by_kind.items()}
    for field, (short, meaning) in LATENCIES.items():
        for suffix, group in groups.items():
            hint = meaning if not suffix else f"{group.answered} requests"
            table.add_row(short + suffix, *_cells(getattr(group, field)), f"[dim]{hint}[/]")
    return table


def _cells(values: Distribution | None) -> list[str]:
    return [f"{getattr(values, column):.1f}" if values else "-" for column in COLUMNS]


def compare_report(names: Sequence[str], summaries: Sequence[Summary]) -> Table:
    """Runs side by side, each figure with its ratio to that of the first run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for place, name in enumerate(names):
        table.add_column(escape(name), justify="right")
        if place:
            table.add_column("ratio", justify="right")
    rows = [figures(summary) for summary in summaries]
    for figure in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(figure) for row in rows]
        table.add_row(figure, *_compared(values))
    return table


def _compared(values: Sequence[float | None]) -> list[str]:
    first = values[0]
    cells = [_number(first)]
    for value in values[1:]:
        ratio = f"x {value / first:.2f}" if first and value is not None else "-"
        cells += [_number(value), ratio]
    return cells


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def figures(summary: Summary) -> dict[str, float | None]:
    """A run's main figures by name; for a mix also those of each kind."""
    found = _group_figures("", summary.overall)
    if len(summary.by_kind) > 1:
        for kind, group in summary.by_kind.items():
            found |= _group_figures(f"{kind}: ", group)
    return found


def _group_figures(prefix: str, group: GroupSummary) -> dict[str, float | None]:
    found: dict[str, Any] = {
        "requests/s": group.requests_per_s,
        "output tokens/s": group.output_tokens_per_s,
        "failed": group.failed,
    }
    for field, (short, _) in LATENCIES.items():
        for column in ("p50", "p99"):
            found[f"{short} {column} ms"] = getattr(getattr(group, field), column, None)
    if group.goodput is not None:
        found["goodput requests/s"] = group.goodput.requests_per_s
    return {prefix + name: value for name, value in found.items()}
