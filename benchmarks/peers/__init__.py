"""The servers that the suite puts under the same load: how each is installed, started and ended."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.peers.peer import Peer
from benchmarks.peers.percept import PerceptSplit, PerceptText
from benchmarks.peers.static_batches import StaticBatches
from benchmarks.peers.transformers_serve import TransformersServe
from benchmarks.peers.vllm import Vllm

_ALL: tuple[Peer, ...] = (Vllm(), PerceptSplit(), PerceptText(), TransformersServe(), StaticBatches())
PEERS = {peer.name: peer for peer in _ALL}
"""Every peer by its name, in the order in which they are measured."""


def default_peers_folder() -> Path:
    """Where the peers' environments are kept: in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "percept" / "peers"
