"""Tower and language model in one process on one device, for comparison: one thing after the other.

Knows Percept's parts and calls them in a row: decode and preprocess, encode all
pictures at once, prefill in one step. Does not know clocks.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llm_service.engine.batch import ScheduledBatch, ScheduledSequence
from llm_service.engine.messages import (
    AddSequence,
    ArenaTensor,
    EngineSettings,
    SamplingSettings,
    SpanMessage,
    StoppingSettings,
)
from llm_service.engine.sequence import Sequence
from llm_service.runner.load import load_runner
from shared.checkpoint import find_checkpoint
from shared.families import load_family
from shared.families.base import ExpandedPrompt, RawTensor
from shared.torch_tensors import to_raw

LONGEST = 16384
BLOCK_SIZE = 16
THREADS = 8
KV_CACHE_GIB = 4.0


class HostRows:
    """Rows of one request's pictures in main memory; a `RowSource`."""

    def __init__(self, items: list[RawTensor]) -> None:
        self._items = items

    def tensors(self, key: str) -> list[ArenaTensor]:
        """See `RowSource`."""
        raw = self._items[int(key)]
        shape = (raw.shape[0], raw.shape[1])
        return [ArenaTensor("embeds", raw.data_type, shape, 0)]  # type: ignore[arg-type]

    def rows(self, key: str, tensor_name: str, first: int, count: int) -> memoryview:
        """See `RowSource`."""
        raw = self._items[int(key)]
        size = len(raw.data) // raw.shape[0]
        return memoryview(raw.data)[first * size : (first + count) * size]


class OneProcess:
    """Both halves of a checkpoint in this process."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        family = load_family(find_checkpoint(str(folder)))
        self._preprocessor = family.preprocessor()
        self._tower = family.tower(device, torch.bfloat16)
        self._layout = family.prompt_layout()
        self._image_id = self._layout.placeholder_ids()["image"]
        cache = KV_CACHE_GIB if device.type == "cuda" else 0.1
        settings = EngineSettings(
            model=str(folder), device=str(device), dtype="bfloat16", max_model_len=LONGEST,
            max_num_batched_tokens=LONGEST // 2, block_size=BLOCK_SIZE, kv_cache_gib=cache,
        )  # fmt: skip
        self._runner = load_runner(settings, lambda fraction, text: None)
        self._chunk = settings.max_num_batched_tokens
        self._threads = ThreadPoolExecutor(THREADS)
        self._count = 0

    def first_token(self, pictures: list[bytes], question: str) -> int:
        """Answers a request with pictures up to its first token.

        Args:
            question: counts by its length alone; its letters stand for tokens.
        """
        features = list(self._threads.map(self._preprocess, pictures))
        encoded = self._tower.encode(features)
        rows = HostRows([to_raw(tensors["embeds"]) for tensors in encoded])
        text = [100 + ord(letter) for letter in question]
        prompt = self._layout.expand(
            [self._image_id] * len(pictures) + text, [each.info for each in features]
        )
        return self._prefill(self._sequence(prompt), rows)

    def _preprocess(self, data: bytes):  # type: ignore[no-untyped-def]
        with Image.open(io.BytesIO(data)) as picture:
            return self._preprocessor.preprocess_image(picture.convert("RGB"), {})

    def _prefill(self, sequence: Sequence, rows: HostRows) -> int:
        sequence.block_table.extend(range(-(-len(sequence.token_ids) // BLOCK_SIZE)))
        start = 0
        while True:
            count = min(self._chunk, len(sequence.token_ids) - start)
            last = start + count == len(sequence.token_ids)
            tokens = self._runner.run(ScheduledBatch([ScheduledSequence(sequence, start, count, last)]), rows)
            if last:
                return tokens[0].token_id
            start += count

    def _sequence(self, prompt: ExpandedPrompt) -> Sequence:
        self._count += 1
        message = AddSequence(
            sequence_id=self._count,
            token_ids=np.asarray(prompt.token_ids, dtype="<i4").tobytes(),
            positions=prompt.positions.astype("<i4").tobytes(),
            axes=prompt.positions.shape[0],
            next_position=prompt.next_position,
            spans=[
                SpanMessage(str(span.item), span.start, span.length, first_row=span.first_row)
                for span in prompt.spans
            ],
            sampling=SamplingSettings(),
            stopping=StoppingSettings(max_token_count=1),
            arrival=0.0,
        )
        return Sequence(message)
