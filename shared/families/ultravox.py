"""Ultravox: Whisper's encoder, stacks of its rows through a gated projector, a plain language model behind.

Published in parts: a checkpoint may hold the projector alone, or the encoder too, and name the
repositories of the rest (`ultravox_config.py`); or it holds all. The arithmetic is the authors'
(fixie-ai/ultravox, ultravox/model/ultravox_model.py and ultravox_processing.py). Knows both
halves of the family, each made apart. Does not know who runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidRequestError
from shared.families.audio_tower import FRAMES_BEHIND, AudioEncoder, row_count
from shared.families.base import (
    MAIN_TENSOR,
    AudioClip,
    Checkpoint,
    EncodedItem,
    Features,
    MediaInfo,
    Modality,
    Preprocessor,
    PromptLayout,
    RawTensor,
    Tower,
)
from shared.families.defaults import AudioAlone, PlainTextFamily
from shared.families.embeddings import check_fields, check_rows
from shared.families.mel import LogMel
from shared.families.ultravox_config import UltravoxSource
from shared.families.unlisted_layout import UnlistedLayout

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.families.weights import Prefixes
    from shared.kernels.library import Team

ROWS = "audio_embeds"
SPECTRUM = "audio_values"
CONTINUES = "continues"
"""Features of a part that is not the recording's first: a single true value."""

PLACEHOLDER = "<|audio|>"
FRAMES_A_ROW = 2
"""Frames of the spectrogram in a row of the encoder."""

PREFIXES: Prefixes = {
    "audio_tower.": ("encoder", "tower."),
    "multi_modal_projector.": ("encoder", "projector."),
    "language_model.model.": ("language", "model."),
    "language_model.lm_head.": ("language", "lm_head."),
    # Those of the repositories of parts: Whisper's, and the language model's.
    "model.encoder.": ("encoder", "tower."),
    "encoder.": ("encoder", "tower."),
    "model.decoder.": ("neither", ""),
    "decoder.": ("neither", ""),
    "proj_out.": ("neither", ""),
    "model.": ("language", "model."),
    "lm_head.": ("language", "lm_head."),
}


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a recording is cut and how many rows its pieces give.

    Attributes:
        context: frames that the encoder takes at once.
        stack: rows of the encoder in one row of the projector.
    """

    context: int
    stack: int

    @classmethod
    def of(cls, config: Any) -> Cutting:
        """The cutting of a configuration (`UltravoxSource.config`)."""
        return cls(FRAMES_A_ROW * int(config.audio_config.max_source_positions), int(config.stack_factor))

    def rows(self, frame_count: int) -> int:
        """Rows of a recording: of each piece, the last stack counts whole."""
        whole, rest = divmod(frame_count, self.context)
        return whole * self._stacks(self.context) + self._stacks(rest)

    def tower_rows(self, frame_count: int) -> int:
        """Rows that the encoder computes for a recording."""
        return row_count(frame_count)

    def pieces(self, spectrum: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """(mels, frames) cut into what the encoder takes at once."""
        frames = spectrum.shape[1]
        return [spectrum[:, first : first + self.context] for first in range(0, frames, self.context)]

    def _stacks(self, frame_count: int) -> int:
        return -(-frame_count // (FRAMES_A_ROW * self.stack))


class UltravoxPreprocessor(AudioAlone):
    """Recordings of any length and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, source: UltravoxSource) -> None:
        config = source.config()
        self._mel = read_mel(source, config)
        self._cutting = Cutting.of(config)
        self._hidden_size = int(config.text_config.hidden_size)
        self.sampling_rate = self._mel.sampling_rate
        self.most_samples = self._mel.most_samples
        if self._mel.mel_count != config.audio_config.num_mel_bins:
            raise InvalidRequestError(
                f"{source.checkpoint.folder}: the feature extractor makes {self._mel.mel_count} bands,"
                f" the encoder takes {config.audio_config.num_mel_bins}"
            )

    def preprocess_audio(self, clip: AudioClip, settings: Mapping[str, Any]) -> Features:
        """See `Hears`. There are no settings: recordings of any length are heard, piece by piece."""
        if settings:
            raise InvalidRequestError("unknown processor setting; there are none", param=sorted(settings)[0])
        hop = self._mel.hop_length
        frames = max(2, self._mel.frame_count(len(clip.samples)))
        spectrum = self._mel(clip.samples, frames * hop)
        info = MediaInfo(row_count=self._cutting.rows(frames), duration=clip.duration)
        return Features(info, {SPECTRUM: spectrum}, self._cutting.tower_rows(frames))

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`. Field: `audio_embeds` (rows, hidden)."""
        check_fields(fields, required=(ROWS,), optional=())
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        return EncodedItem(MediaInfo(row_count=rows), {MAIN_TENSOR: fields[ROWS]})


def read_mel(source: UltravoxSource, config: Any) -> LogMel:
    """The spectrograms of the checkpoint, or of the encoder's repository; Whisper's own where neither says.

    Raises:
        InvalidRequestError: they are not of this kind.
    """
    from transformers import WhisperFeatureExtractor

    folder = source.extractor_folder()
    if folder is None:
        return LogMel(WhisperFeatureExtractor(feature_size=int(config.audio_config.num_mel_bins)))
    return LogMel.of(Checkpoint(folder, {}))


class UltravoxTower:
    """Encoder and projector with their weights; see `Tower`."""

    def __init__(self, module: Any, config: Any) -> None:
        self._module = module
        self._cutting = Cutting.of(config)
        self._block = config.audio_latency_block_size
        self._positions = int(config.audio_config.max_source_positions)
        self.encoder = AudioEncoder(module.tower)
        self.hidden_size = int(config.text_config.hidden_size)

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`."""
        import torch

        parts = [self.split(features) for features in batch]
        with torch.inference_mode():
            rows = iter(self._encoded([part for each in parts for part in each]))
            joined = [torch.cat([next(rows) for _ in each]) for each in parts]
        return [{MAIN_TENSOR: item} for item in joined]

    def split(self, features: Features) -> list[Features]:
        """See `Tower`. Pieces do not see each other."""
        pieces = self._cutting.pieces(features.arrays[SPECTRUM])
        if len(pieces) == 1:
            return [features]
        return [self._part(features, piece, continues=index > 0) for index, piece in enumerate(pieces)]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. The layers alone; torch computes pieces that are padded."""
        return self.encoder.use_kernels(team)

    def _part(self, features: Features, piece: npt.NDArray[np.float32], *, continues: bool) -> Features:
        frames = piece.shape[1]
        arrays: dict[str, npt.NDArray[Any]] = {SPECTRUM: np.ascontiguousarray(piece)}
        if continues:
            arrays[CONTINUES] = np.ones(1, np.bool_)
        info = replace(features.info, row_count=self._cutting.rows(frames))
        return Features(info, arrays, self._cutting.tower_rows(frames))

    def _encoded(self, parts: Sequence[Features]) -> list[torch.Tensor]:
        """Rows of each part; what needs no mask goes through the encoder together."""
        plain = [index for index, part in enumerate(parts) if self._sees(part) is None]
        heard = self.encoder.rows(
            [self._spectrum(parts[index]) for index in plain], [parts[index].token_cost for index in plain]
        )
        known = dict(zip(plain, heard, strict=True))
        return [self._projected(part, known.get(index)) for index, part in enumerate(parts)]

    def _projected(self, part: Features, rows: torch.Tensor | None) -> torch.Tensor:
        if rows is None:
            sees = self._sees(part)
            assert sees is not None
            rows = self.encoder.masked_rows(self._spectrum(part), sees)
        projected: torch.Tensor = self._module.projector(self._module.tower.layer_norm(rows))
        return projected

    def _sees(self, part: Features) -> torch.Tensor | None:
        """Which rows of a part see which, bool (rows, rows); None where all see all.

        A recording's last piece, where it is not the only one, is padded to the encoder's whole
        context: the rows of padding that its last stack holds see what is heard, and nobody sees
        them. With a latency block, a row sees no block behind its own.
        """
        import torch

        real = part.token_cost
        count = self._stacked(real) if CONTINUES in part.arrays else real
        if count == real and not self._block:
            return None
        rows = torch.arange(count)
        sees = (rows < real).expand(count, count)
        if self._block:
            blocks = rows // int(self._block)
            sees = sees & (blocks[None] <= blocks[:, None])
        return sees

    def _stacked(self, real: int) -> int:
        """Rows of whole stacks, as far as the encoder's context reaches."""
        stack = self._cutting.stack
        return min(-(-real // stack) * stack, self._positions)

    def _spectrum(self, part: Features) -> torch.Tensor:
        """(mels, frames), with the padding that rows behind a later piece's end read."""
        import torch
        from torch.nn import functional

        spectrum = torch.from_numpy(part.arrays[SPECTRUM])
        frames = spectrum.shape[1]
        if CONTINUES not in part.arrays or frames == self._cutting.context:
            return spectrum
        needed = FRAMES_A_ROW * self._stacked(part.token_cost) + FRAMES_BEHIND
        # As far as the context reaches: behind it the convolutions pad, as they do with a whole piece.
        return functional.pad(spectrum, (0, min(needed, self._cutting.context) - frames))


class UltravoxFamily(PlainTextFamily):
    """Factory of the parts of one Ultravox checkpoint; see `Family`."""

    model_type = "ultravox"
    modalities: tuple[Modality, ...] = ("audio",)
    prefixes = PREFIXES

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._source = UltravoxSource.of(checkpoint)
        super().__init__(self._source.checkpoint)

    def config(self) -> Any:
        """See `Family`."""
        return self._source.config()

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return UltravoxPreprocessor(self._source)

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = self.config()
        config.audio_config._attn_implementation = "sdpa"
        tower = UltravoxTower(self._encoder_half(lambda: _build_tower(config), device, dtype), config)
        tower.encoder.use_segments(device, dtype)
        return tower

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        return UnlistedLayout.of(self._checkpoint.folder, PLACEHOLDER, "audio")


def _build_tower(config: Any) -> nn.Module:
    from torch import nn
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from shared.families.ultravox_projector import Projector

    module = nn.Module()
    module.tower = WhisperEncoder(config.audio_config)
    module.projector = Projector(config)
    return module
