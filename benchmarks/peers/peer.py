"""What the suite asks of a peer, whoever it is.

Knows the words between suite and peers: a peer serves a checkpoint, and a session with it
measures cases. Does not know any server.
"""

from __future__ import annotations

import asyncio
import math
import socket
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers.process_tree import ProcessTree
from benchmarks.suite.cases import WARM_UP, Case
from benchmarks.suite.figures import Figures
from percept.bench import BenchError, Target, run_load, summarise

POLL_SECONDS = 0.2
REPORT_SECONDS = 10.0


class PeerError(Exception):
    """A peer could not be started or asked; the text says why and ends with its last words."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and with what a peer runs.

    Attributes:
        checkpoint: folder that it serves.
        cores: numbers of the cores that it may use.
        peers: folder that holds the environments of the peers, one each.
        logs: folder for its log files.
        extra_flags: further flags by the peer's name.
    """

    checkpoint: Path
    cores: tuple[int, ...]
    peers: Path
    logs: Path
    extra_flags: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def flags(self, peer: str) -> list[str]:
        """What the user adds to a peer's command."""
        return list(self.extra_flags.get(peer, ()))


class Session(Protocol):
    """A peer that is ready."""

    def measure(self, case: Case) -> Figures:
        """Puts the peer under a case's load.

        Raises:
            PeerError: it cannot be asked.
        """
        ...


class Peer(Protocol):
    """Something to measure.

    Attributes:
        name: in tables and files.
    """

    name: str

    def adapt(self, case: Case) -> Case | None:
        """The case as this peer can take it in a reasonable time, or None where it cannot."""
        ...

    def session(self, place: Place, round_index: int) -> AbstractContextManager[Session]:
        """Starts the peer and warms it up; inside the block it is ready, after it nothing is left.

        Raises:
            PeerError: it did not start.
        """
        ...


class ServerPeer(ABC):
    """A peer that listens on a port and speaks OpenAI's API."""

    name = ""
    text_only = False
    start_seconds = 600.0

    @abstractmethod
    def command(self, place: Place, port: int) -> list[str | Path]:
        """The command that serves `place.checkpoint` on 127.0.0.1:`port`."""

    def adapt(self, case: Case) -> Case | None:
        """See `Peer.adapt`."""
        return None if case.has_images and self.text_only else case

    def variables(self, place: Place) -> dict[str, str]:
        """What its environment needs."""
        return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

    def target(self, port: int, place: Place) -> Target:
        """Who is asked."""
        return Target(f"http://127.0.0.1:{port}/v1", name=self.name)

    def settle(self, session: ServerSession) -> None:
        """Waits, under load if need be, until the server is as fast as it gets."""
        for case in WARM_UP:
            if self.adapt(case) is not None:
                session.measure(case)

    @contextmanager
    def session(self, place: Place, round_index: int) -> Iterator[Session]:
        """See `Peer.session`."""
        port = free_port()
        tree = ProcessTree(
            self.command(place, port),
            place.logs / f"{self.name}-{round_index + 1}.log",
            variables=self.variables(place),
            cores=place.cores,
        )
        with started(self.name, tree):
            wait_until_ready(self.name, f"http://127.0.0.1:{port}/health", tree, self.start_seconds)
            session = ServerSession(self.target(port, place), tree)
            self.settle(session)
            yield session


class ServerSession:
    """A server that is ready.

    Attributes:
        tree: its processes.
    """

    def __init__(self, target: Target, tree: ProcessTree) -> None:
        self.tree = tree
        self._target = target

    def measure(self, case: Case) -> Figures:
        """See `Session.measure`."""
        if self.tree.exit_code is not None:
            raise PeerError(f"{self._target.name} has ended:\n{self.tree.tail()}")
        try:
            result = asyncio.run(run_load(self._target, case.workload, case.load))
        except BenchError as error:
            raise PeerError(f"{self._target.name}, {case.name}: {error}\n{self.tree.tail()}") from error
        return Figures.of(summarise(result))


@contextmanager
def started(name: str, tree: ProcessTree) -> Iterator[None]:
    """Runs a tree inside the block.

    Raises:
        PeerError: its command is not there.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(tree)
        except OSError as error:
            raise PeerError(
                f"{name} cannot be started ({error}). Is it installed? make bench-peers"
            ) from error
        yield


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def wait_until_ready(
    name: str, url: str, tree: ProcessTree, timeout_s: float, say: Callable[[str], Any] | None = None
) -> float:
    """Asks `url` until it answers 200. Returns the seconds that it took.

    Raises:
        PeerError: the process ended first, or the time was up.
    """
    say = say or say_to_stderr
    started = time.monotonic()
    reported = 0
    while (elapsed := time.monotonic() - started) < timeout_s:
        if tree.exit_code is not None:
            raise PeerError(f"{name} ended with code {tree.exit_code} before it was ready:\n{tree.tail()}")
        if answers(url):
            return elapsed
        if math.floor(elapsed / REPORT_SECONDS) > reported:
            reported = math.floor(elapsed / REPORT_SECONDS)
            say(f"{name}: starting, {elapsed:.0f} s: {tree.tail(1)[:120]}")
        time.sleep(POLL_SECONDS)
    raise PeerError(f"{name} was not ready after {timeout_s:.0f} s:\n{tree.tail()}")


def answers(url: str) -> bool:
    """Whether a URL answers 200 within five seconds."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def say_to_stderr(text: str) -> None:
    """One line of progress."""
    print(f"  {text}", file=sys.stderr, flush=True)
