"""`transformers serve`, in an environment of its own (see `install`)."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.peer import Place, ServerPeer


class TransformersServe(ServerPeer):
    """The server that comes with transformers. It answers requests with pictures one after the other."""

    name = "transformers-serve"
    slow = True
    # It knows no such field; the checkpoint ends no answer by itself.
    ignores_eos = False

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
