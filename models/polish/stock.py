"""What the towers make of every item, computed once and kept in files.

Knows how the files are made and read. Knows nothing about what is asked.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.multiprocessing
from tqdm import tqdm
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from models.polish.items import Items
from models.senses.beeps import sound
from models.senses.ears import WIDTH, hear
from models.senses.pool import Pool, make_pool
from models.senses.recordings import record
from models.senses.speech import Samples
from models.senses.spelling import Clip, to_spectra
from models.training.drawing import draw
from models.training.pixels import MERGE, MOST_CELLS, grid_of, patches
from models.training.scenes import Scene

MOST_PICTURES = 4
"""Of a film; a conversation has two at the most."""
MOST_FRAMES = 608
"""Of a recording of six seconds."""
_MOST_ROWS = MOST_FRAMES // 4
_BATCH = 32

Rows = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Sizes:
    """How many items there are of each kind."""

    singles: int = 16000
    pairs: int = 12000
    films: int = 6000
    conversations: int = 5000
    voices: int = 14000
    beeps: int = 3000


class Stock:
    """The items of a folder and their rows.

    Attributes:
        folder: where it is kept.
        items: what the rows are of.
        utterances: what voices say: recording `n` is of utterance `n`.
        sizes: how many there are.
    """

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder, self.items = folder, Items(seed)
        self.utterances = Pool(folder / "utterances")
        self.sizes = Sizes(**json.loads((folder / "sizes.json").read_text()))
        self._rows = {kind: np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in asdict(self.sizes)}
        self._samples: dict[tuple[str, int], int] = {}

    def pictures(self, kind: str, number: int) -> Rows:
        """Rows of an item's pictures: (pictures, MOST_CELLS, width); what is beyond a grid means nothing."""
        rows: Rows = self._rows[kind][number]
        return rows

    def recording(self, kind: str, number: int) -> Rows:
        """(rows, width), padded at the end."""
        rows: Rows = self._rows[kind][number]
        return rows

    def samples(self, kind: str, number: int) -> int:
        """Samples of a recording."""
        if (kind, number) not in self._samples:
            heard = self.utterances.samples(number) if kind == "voices" else sound(self.items.beeps(number))
            self._samples[kind, number] = len(record(heard, self.items.noise(kind, number)))
        return self._samples[kind, number]


def make_stock(folder: Path, model: Path, seed: str, sizes: Sizes, workers: int = 2) -> Stock:
    """Draws, speaks and encodes all items into the folder, unless it has them.

    What was interrupted is begun again, save what was spoken. Rows of another model are not told apart.

    Raises:
        ValueError: the folder has another number of items.
    """
    if not (folder / "sizes.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_pool(folder / "utterances", int(seed.encode().hex(), 16) % 2**31, sizes.voices)
        for kind, count in asdict(sizes).items():
            shape = _shape_of(kind, count)
            np.lib.format.open_memmap(folder / f"{kind}.npy", mode="w+", dtype=np.float16, shape=shape)
        spawn: Callable[..., object] = torch.multiprocessing.spawn  # type: ignore[attr-defined]
        spawn(_fill, (workers, folder, model, seed, sizes), workers)
        partial = folder / "sizes.partial"
        partial.write_text(json.dumps(asdict(sizes)))
        partial.replace(folder / "sizes.json")
    stock = Stock(folder, seed)
    if stock.sizes != sizes:
        raise ValueError(f"{folder} has {stock.sizes}, not {sizes}; remove it to have it made anew")
    return stock


def _shape_of(kind: str, count: int) -> tuple[int, ...]:
    if kind in ("voices", "beeps"):
        return count, _MOST_ROWS, WIDTH
    pictures = {"singles": 1, "pairs": 2}.get(kind, MOST_PICTURES)
    return count, pictures, MOST_CELLS, WIDTH


def _fill(worker: int, workers: int, folder: Path, model: Path, seed: str, sizes: Sizes) -> None:
    """One worker's share of every kind."""
    torch.set_num_threads(1)
    towers, items = Towers(model), Items(seed)
    utterances = Pool(folder / "utterances")
    scenes_of: dict[str, Callable[[int], Sequence[Scene]]] = {
        "singles": lambda number: (items.single(number),),
        "pairs": items.pair,
        "films": lambda number: items.film(number).scenes,
        "conversations": lambda number: _conversation_scenes(items, number),
    }
    sounds_of: dict[str, Callable[[int], Samples]] = {
        "voices": utterances.samples,
        "beeps": lambda number: sound(items.beeps(number)),
    }
    for kind, count in asdict(sizes).items():
        rows = np.load(folder / f"{kind}.npy", mmap_mode="r+")
        starts = range(worker * _BATCH, count, workers * _BATCH)
        for start in tqdm(starts, desc=kind, unit="batch", disable=worker > 0):
            numbers = range(start, min(start + _BATCH, count))
            if kind in scenes_of:
                towers.look([scenes_of[kind](number) for number in numbers], rows[start : numbers.stop])
            else:
                clips = [
                    Clip(record(sounds_of[kind](number), items.noise(kind, number)), ()) for number in numbers
                ]
                towers.listen(clips, rows[start : numbers.stop])


def _conversation_scenes(items: Items, number: int) -> Sequence[Scene]:
    """The pictures of a conversation, in order."""
    return [scene for exchange in items.conversation(number).exchanges for scene in exchange.scenes]


class Towers:
    """The eyes and ears of a checkpoint."""

    def __init__(self, model: Path) -> None:
        thinker: Any = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
        self._thinker = thinker.eval()

    @torch.no_grad()
    def look(self, items: list[Sequence[Scene]], out: Rows) -> None:
        """Writes the rows of all items' pictures."""
        scenes = [scene for pictures in items for scene in pictures]
        if not scenes:
            return
        flat = np.concatenate([patches(draw(scene)) for scene in scenes])
        pixels = torch.from_numpy(flat).float().view(len(flat), 3, 1, -1) / 127.5 - 1
        grids = [grid_of(scene.width, scene.height) for scene in scenes]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = self._thinker.get_image_features(
                pixels.expand(-1, -1, 2, -1).reshape(len(flat), -1),
                image_grid_thw=torch.tensor([[1, rows * MERGE, columns * MERGE] for rows, columns in grids]),
            ).pooler_output
        looked = iter(seen)
        for index, pictures in enumerate(items):
            for place in range(len(pictures)):
                rows = next(looked)
                out[index, place, : len(rows)] = rows.to(torch.float16).numpy()

    @torch.no_grad()
    def listen(self, clips: list[Clip], out: Rows) -> None:
        """Writes the rows of all recordings."""
        spectra, counts = to_spectra(clips, MOST_FRAMES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows = hear(self._thinker.model.audio_tower, spectra, counts)
        out[:] = rows.to(torch.float16).numpy()
