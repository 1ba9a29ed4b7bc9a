"""Utterances spoken ahead: training takes them from a file, since speaking takes longer than learning.

Knows how the file is written and read. Knows nothing about what the utterances are for.
"""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from models.senses.speech import Samples, make_utterance, speak

_SPEAKERS = 2
_LOUDEST = 32767


class Pool:
    """Spoken utterances: `words(n)` and `samples(n)`.

    Attributes:
        size: how many there are.
    """

    def __init__(self, folder: Path) -> None:
        known = json.loads((folder / "words.json").read_text())
        self._words: list[list[str]] = known["words"]
        self._edges: list[int] = known["edges"]
        self._samples = np.load(folder / "samples.npy", mmap_mode="r")
        self.size = len(self._words)

    def words(self, number: int) -> tuple[str, ...]:
        return tuple(self._words[number])

    def samples(self, number: int) -> Samples:
        """(samples,) from -1 to 1."""
        first, last = self._edges[number], self._edges[number + 1]
        return np.asarray(self._samples[first:last], np.float32) / np.float32(_LOUDEST)


def make_pool(folder: Path, seed: int, size: int) -> Pool:
    """Speaks `size` utterances into the folder, unless it has them."""
    if not (folder / "words.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        chosen = [make_utterance(random.Random(f"voice/{seed}/{number}")) for number in range(size)]
        with ThreadPoolExecutor(_SPEAKERS) as speakers:
            spoken = [
                (samples * _LOUDEST).astype(np.int16)
                for samples in tqdm(speakers.map(speak, chosen), total=size, desc="speaking")
            ]
        edges = np.cumsum([0, *(len(samples) for samples in spoken)]).tolist()
        np.save(folder / "samples.npy", np.concatenate(spoken))
        words = {"words": [one.words for one in chosen], "edges": edges}
        (folder / "words.json").write_text(json.dumps(words))
    return Pool(folder)
