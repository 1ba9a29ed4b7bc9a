"""The tower in its own thread.

Knows torch and one tower. Does not know requests: it takes batches and gives
tensors as bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from shared.families.base import MAIN_TENSOR, EncodedItem, Features, MediaInfo, Tower
from shared.wire import TensorLayout


class Encoder:
    """Runs one tower, one batch at a time.

    Args:
        load: makes the tower, in the thread that will run it.
        data_type: name of the element type of the embeddings.
        extra_widths: the tensors of an item beside its main one; see `Family`.
    """

    def __init__(self, load: Callable[[], Tower], data_type: str, extra_widths: Mapping[str, int]) -> None:
        self._load = load
        self._data_type = data_type
        self._extra_widths = extra_widths
        self._tower: Tower | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tower")

    async def start(self) -> None:
        """Loads the tower."""
        loop = asyncio.get_running_loop()
        self._tower = await loop.run_in_executor(self._thread, self._load)

    @property
    def hidden_size(self) -> int:
        """Width of an embedding row."""
        return self._loaded().hidden_size

    def layouts(self, info: MediaInfo) -> tuple[TensorLayout, ...]:
        """The tensors that a run will give for an item, known before it."""
        widths = {MAIN_TENSOR: self.hidden_size, **self._extra_widths}
        return tuple(
            TensorLayout(name, self._data_type, (info.row_count, width)) for name, width in widths.items()
        )

    def split(self, features: Features) -> list[Features]:
        """The parts in which an item is encoded; see `Tower`."""
        return self._loaded().split(features)

    async def run(self, batch: Sequence[Features]) -> list[EncodedItem]:
        """Encodes a batch, in its order."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._encode, list(batch))

    def close(self) -> None:
        """Lets a run in progress end, and ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _loaded(self) -> Tower:
        assert self._tower is not None, "the encoder is started before it is used"
        return self._tower

    def _encode(self, batch: list[Features]) -> list[EncodedItem]:
        import torch

        from shared.torch_tensors import to_raw

        with torch.inference_mode():
            outputs = self._loaded().encode(batch)
        assert len(outputs) == len(batch), "a tower answers every item"
        # Copies: an item's rows are a slice of the batch's, which must not outlive it.
        return [
            EncodedItem(features.info, {name: to_raw(tensor) for name, tensor in tensors.items()})
            for features, tensors in zip(batch, outputs, strict=True)
        ]
