"""A front for tests: feeds an engine with prompts and with rows from Percept's own towers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Run
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from llm_service.engine.messages import (
    AddSequence,
    ArenaTensor,
    CloseEmbeddings,
    EmbeddingRowsReady,
    EngineSettings,
    OpenEmbeddings,
    RowsNeeded,
    SamplingSettings,
    SpanMessage,
    StepReport,
    StoppingSettings,
    ToEngine,
    ToFront,
    TokenReport,
)
from llm_service.engine.times_wish import TokenTimesWish
from shared.checkpoint import find_checkpoint
from shared.embedding_arena import EmbeddingArena
from shared.families import load_family
from shared.families.base import AudioClip, EncodedItem, ExpandedPrompt, Features, Hears
from shared.families.writes_speech import WritesSpeech
from shared.torch_tensors import to_raw

ARENA_BYTES = 1 << 20


def draw_picture(seed: int, size: tuple[int, int] = (70, 56)) -> Image.Image:
    """A picture of rectangles that no other seed gives."""
    generator = np.random.default_rng(seed)
    picture = Image.new("RGB", size, tuple(int(c) for c in generator.integers(0, 256, 3)))
    pen = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y = (int(v) for v in generator.integers(0, 40, 2))
        pen.rectangle((x, y, x + 20, y + 12), fill=tuple(int(c) for c in generator.integers(0, 256, 3)))
    return picture


def settings_for(folder: Path, **changes: object) -> EngineSettings:
    """Small limits in float32 on the CPU, blocks of four slots."""
    values: dict[str, object] = {
        "model": str(folder),
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "max_model_len": 512,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 256,
        "block_size": 4,
        "kv_cache_gib": 0.02,
    }
    return EngineSettings(**(values | changes))  # type: ignore[arg-type]


class EngineFront:
    """The front's side of one engine, whatever carries the messages.

    Attributes:
        preprocessor: the checkpoint's.
        reports: token reports by sequence.
        ended: sequences that the engine has let go of.
        others: all messages but step reports and questions for rows, in order.
    """

    def __init__(self, folder: Path, arena: EmbeddingArena, send: Callable[[ToEngine], None]) -> None:
        family = load_family(find_checkpoint(str(folder)))
        self._layout = family.prompt_layout()
        self.preprocessor = family.preprocessor()
        self._tower = family.tower(torch.device("cpu"), torch.float32)
        self._arena = arena
        self._send = send
        self._items: dict[str, EncodedItem] = {}
        self._open: set[str] = set()
        self._ids = itertools.count(1)
        self.reports: dict[int, list[TokenReport]] = {}
        self.ended: set[int] = set()
        self.others: list[ToFront] = []
        self.last_report: StepReport | None = None
        self.asked: list[str] = []

    def encode(self, key: str, picture: Image.Image) -> None:
        """Makes the rows of a picture."""
        self.encode_features(key, self.preprocessor.preprocess_image(picture, {}))

    def hear(self, key: str, clip: AudioClip) -> None:
        """Makes the rows of a recording."""
        assert isinstance(self.preprocessor, Hears)
        self.encode_features(key, self.preprocessor.preprocess_audio(clip, {}))

    def encode_features(self, key: str, features: Features) -> None:
        """Makes the rows of an item."""
        (tensors,) = self._tower.encode([features])
        self._items[key] = EncodedItem(
            features.info, {name: to_raw(tensor.clone()) for name, tensor in tensors.items()}
        )

    def add(
        self,
        token_ids: Run[int],
        keys: Run[str] = (),
        *,
        max_token_count: int = 16,
        stop_token_ids: Run[int] = (),
        sampling: SamplingSettings | None = None,
        times_behind: int | None = None,
    ) -> int:
        """Sends a prompt with one placeholder for each key and returns the sequence's id.

        Args:
            times_behind: asks when tokens are heard, of all behind so many of the answer's first.
        """
        prompt = self._layout.expand(token_ids, [self._items[key].info for key in keys])
        sequence_id = next(self._ids)
        self.reports[sequence_id] = []
        message = AddSequence(
            sequence_id=sequence_id,
            token_ids=np.asarray(prompt.token_ids, dtype="<i4").tobytes(),
            positions=prompt.positions.astype("<i4").tobytes(),
            axes=prompt.positions.shape[0],
            next_position=prompt.next_position,
            spans=[
                SpanMessage(
                    keys[span.item], span.start, span.length, span.splittable, span.first_row, span.tail
                )
                for span in prompt.spans
            ],
            sampling=sampling or SamplingSettings(),
            stopping=StoppingSettings(max_token_count, stop_token_ids=list(stop_token_ids)),
            arrival=float(sequence_id),
            variant=prompt.variant,
            token_times=None if times_behind is None else self._wish(prompt, keys, times_behind),
        )
        self._send(message)
        return sequence_id

    def _wish(self, prompt: ExpandedPrompt, keys: Run[str], behind: int) -> TokenTimesWish:
        assert isinstance(self._layout, WritesSpeech)
        rows = self._layout.sounding_rows(self._items[keys[0]].info)
        return TokenTimesWish(len(prompt.token_ids) + behind, rows)

    def take(self, messages: Iterable[ToFront]) -> None:
        """Takes the engine's messages in and answers its questions for rows at once."""
        for message in messages:
            match message:
                case StepReport():
                    self._take_report(message)
                case RowsNeeded():
                    for key in message.keys:
                        self._deliver(key)
                case _:
                    self.others.append(message)

    def token_ids(self, sequence_id: int) -> list[int]:
        """The tokens so far."""
        return [report.token_id for report in self.reports[sequence_id]]

    def close_all(self) -> None:
        """Takes every item's rows away."""
        for key in self._open:
            self._send(CloseEmbeddings(key))
        self._open.clear()

    def _take_report(self, report: StepReport) -> None:
        self.last_report = report
        for token in report.tokens:
            self.reports[token.sequence_id].append(token)
        self.ended.update(report.ended)

    def _deliver(self, key: str) -> None:
        self.asked.append(key)
        if key in self._open:
            return
        self._open.add(key)
        item = self._items[key]
        tensors: list[ArenaTensor] = []
        for name, raw in item.tensors.items():
            offset = self._arena.allocate(len(raw.data))
            assert offset is not None
            self._arena.view(offset, len(raw.data))[:] = raw.data
            rows, width = raw.shape
            tensors.append(ArenaTensor(name, raw.data_type, (rows, width), offset))  # type: ignore[arg-type]
        self._send(OpenEmbeddings(key, tensors))
        for row_count in (item.info.row_count // 2, item.info.row_count):
            self._send(EmbeddingRowsReady(key, row_count))
