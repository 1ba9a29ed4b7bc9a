"""Percept itself: all three services as `percept up` starts them, and the LLM service without an encoder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers.peer import (
    PeerError,
    Place,
    ServerPeer,
    ServerSession,
    Session,
    free_port,
    wait_until_ready,
)
from benchmarks.peers.process_tree import ProcessTree

COMMON = ("--log-level=info",)
MODEL_FLAGS = ("--dtype=bfloat16", "--device=cpu")


class PerceptSplit(ServerPeer):
    """`percept up`: gateway, encoder and LLM, cores shared out as it likes."""

    name = "percept"

    def command(self, place: Place, port: int) -> list[str | Path]:
        """See `ServerPeer.command`."""
        return [
            *percept("up"),
            f"--model={place.checkpoint}",
            f"--port={port}",
            *MODEL_FLAGS,
            *COMMON,
            *place.flags(self.name),
        ]


class PerceptText(ServerPeer):
    """The LLM service on all cores behind a gateway that knows no encoder: text alone."""

    name = "percept-text"
    text_only = True

    def command(self, place: Place, port: int) -> list[str | Path]:
        """The LLM service's; the gateway is another process."""
        return [
            *percept("llm"),
            f"--model={place.checkpoint}",
            f"--listen=127.0.0.1:{port}",
            f"--threads={len(place.cores)}",
            *MODEL_FLAGS,
            *COMMON,
            *place.flags(self.name),
        ]

    @contextmanager
    def session(self, place: Place, round_index: int) -> Iterator[Session]:
        """See `Peer.session`."""
        llm_port, port = free_port(), free_port()
        gateway = [*percept("gateway"), f"--listen=127.0.0.1:{port}", f"--llm=127.0.0.1:{llm_port}"]
        log = place.logs / f"{self.name}-{round_index + 1}"
        llm_tree = self._tree(self.command(place, llm_port), place, log.with_suffix(".log"))
        gateway_tree = self._tree([*gateway, *COMMON], place, log.with_suffix(".gateway.log"))
        with llm_tree, gateway_tree:
            url = f"http://127.0.0.1:{port}/health"
            try:
                wait_until_ready(self.name, url, gateway_tree, self.start_seconds)
            except PeerError as error:
                raise PeerError(f"{error}\nthe LLM service said:\n{llm_tree.tail()}") from error
            session = ServerSession(self.target(port, place), llm_tree)
            self.settle(session)
            yield session

    def _tree(self, command: list[str | Path], place: Place, log: Path) -> ProcessTree:
        return ProcessTree(command, log, variables=self.variables(place), cores=place.cores)


def percept(command: str) -> list[str | Path]:
    """How this environment's own Percept is started."""
    return [sys.executable, "-m", "percept", command]
