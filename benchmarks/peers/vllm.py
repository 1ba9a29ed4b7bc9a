"""vLLM on the CPU, in an environment of its own (see `install`)."""

from __future__ import annotations

import platform
from pathlib import Path

from benchmarks.peers.peer import Place, ServerPeer

KV_CACHE_GIB = 4


class Vllm(ServerPeer):
    """`vllm serve` with its defaults, but without caches over requests: every request is fresh anyway."""

    name = "vllm"
    # The first start on a machine compiles for a minute or two.
    start_seconds = 900.0

    def command(self, place: Place, port: int) -> list[str | Path]:
        """See `ServerPeer.command`."""
        return [
            place.peers / "vllm" / "bin" / "vllm",
            "serve",
            place.checkpoint,
            "--served-model-name=measured",
            "--dtype=bfloat16",
            "--host=127.0.0.1",
            f"--port={port}",
            "--max-model-len=4096",
            "--max-num-seqs=64",
            "--no-enable-prefix-caching",
            "--mm-processor-cache-gb=0",
            '--limit-mm-per-prompt={"image": 8, "video": 0}',
            *place.flags(self.name),
        ]

    def variables(self, place: Place) -> dict[str, str]:
        """See `ServerPeer.variables`."""
        found = {
            "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, place.cores)),
            # What it compiles ahead of time it cannot load again, and compiles anew at each start.
            "VLLM_USE_AOT_COMPILE": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        if preloaded := preloads(place.peers / "vllm"):
            found["LD_PRELOAD"] = ":".join(map(str, preloaded))
        return super().variables(place) | found


def preloads(environment: Path) -> list[Path]:
    """The allocator and the OpenMP runtime that vLLM's documentation recommends, where they are there."""
    library = f"{platform.machine()}-linux-gnu/libtcmalloc_minimal.so.4"
    places = (environment / "native/usr/lib", environment.parent / "native/usr/lib", Path("/usr/lib"))
    allocators = [folder / library for folder in places if (folder / library).exists()]
    runtimes = [environment / "lib/libiomp5.so"]
    return [*allocators[:1], *(runtime for runtime in runtimes if runtime.exists())]
