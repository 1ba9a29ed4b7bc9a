"""Plain `generate()` of transformers in static batches, as a script would call it, in this environment."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from benchmarks.peers.peer import PeerError, Place, Session, free_port, wait_until_ready
from benchmarks.peers.process_tree import ProcessTree
from benchmarks.suite.cases import Case
from benchmarks.suite.figures import Figures

START_SECONDS = 300.0
CASE_SECONDS = 600.0


class StaticBatches:
    """A case at concurrency N becomes batches of N prompts, each waited for as a whole."""

    name = "generate"

    def adapt(self, case: Case) -> Case | None:
        """A closed loop becomes one batch, or two of one prompt each."""
        concurrency = case.load.concurrency
        return None if concurrency is None else case.with_requests(max(2, concurrency))

    @contextmanager
    def session(self, place: Place, round_index: int) -> Iterator[Session]:
        """See `Peer.session`."""
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "benchmarks.peers.generate_program",
            str(place.checkpoint),
            str(port),
        ]
        tree = ProcessTree(
            command,
            place.logs / f"{self.name}-{round_index + 1}.log",
            variables={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(len(place.cores))},
            cores=place.cores,
        )
        with tree:
            wait_until_ready(self.name, f"http://127.0.0.1:{port}/health", tree, START_SECONDS)
            yield _BatchSession(port, tree)


class _BatchSession:
    def __init__(self, port: int, tree: ProcessTree) -> None:
        self._url = f"http://127.0.0.1:{port}/measure"
        self._tree = tree

    def measure(self, case: Case) -> Figures:
        """See `Session.measure`."""
        asked = {
            "workload": asdict(case.workload),
            "batch_size": case.load.concurrency,
            "requests": case.load.requests,
        }
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self._url, json.dumps(asked).encode(), timeout=CASE_SECONDS) as answer:
                return Figures.from_json(json.load(answer))
        except (urllib.error.URLError, OSError) as error:
            raise PeerError(f"generate() failed: {error}\n{self._tree.tail()}") from error
