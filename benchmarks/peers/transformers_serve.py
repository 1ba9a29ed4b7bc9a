"""`transformers serve`, in an environment of its own (see `install`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.peers.peer import Place, ServerPeer, ServerSession
from benchmarks.suite.cases import WARM_UP, Case
from percept.bench import Target

MOST_CLIENTS = 4


class TransformersServe(ServerPeer):
    """The server that comes with transformers. It answers requests with pictures one after the other."""

    name = "transformers-serve"

    def adapt(self, case: Case) -> Case | None:
        """Few clients with two requests each; more of them would only wait longer."""
        concurrency = case.load.concurrency
        if concurrency is None or concurrency > MOST_CLIENTS:
            return None
        return case.with_requests(2 * concurrency)

    def target(self, port: int, place: Place) -> Target:
        """See `ServerPeer.target`."""
        # Its list of models is of the hub's cache alone, and it knows no `ignore_eos`.
        return replace(super().target(port, place), model=str(place.checkpoint), ignore_eos=False)

    def settle(self, session: ServerSession) -> None:
        """Nothing is compiled: one answer of each kind warms it."""
        for case in WARM_UP:
            session.measure(case.with_requests(1))

    def command(self, place: Place, port: int) -> list[str | Path]:
        """See `ServerPeer.command`."""
        return [
            place.peers / "transformers" / "bin" / "transformers",
            "serve",
            place.checkpoint,
            "--host=127.0.0.1",
            f"--port={port}",
            "--device=cpu",
            "--dtype=bfloat16",
            *place.flags(self.name),
        ]

    def variables(self, place: Place) -> dict[str, str]:
        """See `ServerPeer.variables`."""
        return super().variables(place) | {"OMP_NUM_THREADS": str(len(place.cores))}
