"""`python -m benchmarks.suite`: Percept and its peers under the same load, and one table of bars.

Knows the command line and the order of the parts. What was measured is written after
every step, so that an interrupted run keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.limits import Limits, floors
from benchmarks.peers import PEERS, default_peers_folder
from benchmarks.peers.peer import Place
from benchmarks.suite.bars import judge_all
from benchmarks.suite.cases import Case, cases
from benchmarks.suite.checkpoint import default_folder, ensure_checkpoint
from benchmarks.suite.machine import describe_machine
from benchmarks.suite.plots import draw
from benchmarks.suite.programs import LIMITS, PROGRAMS, Program, ProgramError, run_program
from benchmarks.suite.report import bar_table, markdown
from benchmarks.suite.results import Results
from benchmarks.suite.rounds import Rounds, turns
from benchmarks.suite.work import work_of

RESULTS = Path(__file__).parent.parent / "results"
BY_TURNS = ("vllm", "percept")
"""The bars compare these; the others take part in the first round."""

PICTURE_TOKENS = 256
TEXT_TOKENS, PICTURE_PROMPT_TOKENS = 123, 297
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suite. 0 where it came to its end, whatever the bars; 130 where it was interrupted."""
    chosen = _arguments(arguments)
    # A shell starts what it puts in the background with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    run = SuiteRun(chosen)
    try:
        run.run()
    except KeyboardInterrupt:
        say("interrupted: what was measured is kept")
        run.keep()
        return INTERRUPTED
    run.finish()
    return 0


class SuiteRun:
    """One run: what was chosen, and what has come out so far."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._chosen = chosen
        self._out: Path = chosen.out or RESULTS / datetime.now(UTC).strftime("%Y-%m-%d-%H%M%S")
        self._results = Results()

    def run(self) -> None:
        """Measures everything that was chosen."""
        chosen, results = self._chosen, self._results
        checkpoint = ensure_checkpoint(chosen.checkpoint)
        extra = {name: flags.split() for name, flags in (text.split("=", 1) for text in chosen.flags)}
        logs = self._out / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        place = Place(checkpoint, tuple(chosen.cores), chosen.peers_folder, logs, extra)
        results.machine = describe_machine(place.cores)
        measured = [case for case in cases(quick=chosen.quick) if _wanted(case.name, chosen.workloads)]
        results.cases = {case.name: case.to_json() for case in measured}
        if _wanted(LIMITS.name, chosen.only):
            self._measure_limits(place)
        self._run_rounds(place, measured)
        self._run_programs(place)

    def keep(self) -> None:
        """Writes what is known: JSON and Markdown."""
        self._out.mkdir(parents=True, exist_ok=True)
        judged = judge_all(self._results)
        found = {**self._results.to_json(), "bars": [each.to_json() for each in judged]}
        (self._out / "suite.json").write_text(json.dumps(found, indent=2) + "\n")
        (self._out / "suite.md").write_text(markdown(self._results, judged))

    def finish(self) -> None:
        """Writes and draws everything and prints the bars."""
        self.keep()
        drawn = draw(self._results, self._out)
        print(f"\n{bar_table(judge_all(self._results))}\n")
        for trouble in self._results.troubles:
            print(f"not measured: {trouble}")
        names = ("suite.md", "suite.json", *(path.name for path in drawn))
        print(f"written to {self._out}: {', '.join(names)}")

    def _measure_limits(self, place: Place) -> None:
        if (found := self._run_program(LIMITS, place)) is not None:
            limits, work = Limits(**found), work_of(place.checkpoint, PICTURE_TOKENS)
            least = floors(limits, work, TEXT_TOKENS, PICTURE_PROMPT_TOKENS)
            self._results.limits, self._results.floors = found, asdict(least)

    def _run_rounds(self, place: Place, measured: list[Case]) -> None:
        peers = [PEERS[name] for name in PEERS if _wanted(name, self._chosen.only)]
        plan = turns(
            [peer for peer in peers if peer.name in BY_TURNS],
            [peer for peer in peers if peer.name not in BY_TURNS],
            self._chosen.repeats or (1 if self._chosen.quick else 3),
        )
        if measured:
            Rounds(place, measured, self._results, say, self.keep).run(plan)

    def _run_programs(self, place: Place) -> None:
        for program in PROGRAMS:
            if _wanted(program.name, self._chosen.only):
                found = self._run_program(program, place)
                if found is not None:
                    self._results.programs[program.name] = found
                self.keep()

    def _run_program(self, program: Program, place: Place) -> dict[str, Any] | None:
        say(program.name)
        try:
            return run_program(program, place, quick=self._chosen.quick, say=say)
        except ProgramError as error:
            self._results.troubles.append(f"{program.name}: {error}")
            say(f"  {error}")
            return None


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def _wanted(name: str, chosen: Sequence[str]) -> bool:
    return not chosen or name in chosen


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parts = [*PEERS, LIMITS.name, *(program.name for program in PROGRAMS)]
    names = [case.name for case in cases()]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of fewer and shorter cases")
    parser.add_argument("--only", type=_names(parts), default=(), metavar="A,B", help=", ".join(parts))
    parser.add_argument("--workloads", type=_names(names), default=(), metavar="A,B", help=", ".join(names))
    parser.add_argument("--repeats", type=int, help="rounds; 3, or 1 with --quick")
    parser.add_argument("--cores", type=_cores, default=_own_cores(), metavar="0,1", help="for every server")
    parser.add_argument("--checkpoint", type=Path, default=default_folder(), help="made where there is none")
    parser.add_argument("--peers-folder", type=Path, default=default_peers_folder(), help="see bench-peers")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument(
        "--flags", action="append", default=[], metavar="PEER=FLAGS", help="further flags of a peer's server"
    )
    return parser.parse_args(arguments)


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        found = tuple(name.strip() for name in text.split(",") if name.strip())
        if unknown := sorted(set(found) - set(known)):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(known)}")
        return found

    return parse


def _cores(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _own_cores() -> list[int]:
    return sorted(psutil.Process().cpu_affinity() or [0])
