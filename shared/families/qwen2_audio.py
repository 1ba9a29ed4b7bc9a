"""Qwen2-Audio: Whisper's encoder with pairs of rows averaged, one linear layer, Qwen2 behind.

Knows both halves of the family, each made apart. Does not know who runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import BadEmbeddingsError, BadMediaError, InvalidRequestError
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
from shared.families.clip_length import TRUNCATION, fitting_samples
from shared.families.defaults import AudioAlone, InOneGo, PlainTextFamily
from shared.families.embeddings import check_fields, check_rows
from shared.families.mel import LogMel
from shared.families.plain_layout import PlainLayout
from shared.families.tensor_names import AUDIO_TOWER_AND_PROJECTOR

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.kernels.library import Team

ROWS = "audio_embeds"
SPECTRUM = "input_features"


class Qwen2AudioPreprocessor(AudioAlone):
    """Recordings and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._mel = LogMel.of(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self.sampling_rate = self._mel.sampling_rate
        self.most_samples = self._mel.most_samples
        self._most_rows = _pooled(row_count(self._mel.frame_count(self._mel.most_samples)))
        positions = int(config.audio_config.max_source_positions)
        frames = self._mel.most_samples // self._mel.hop_length
        if frames != 2 * positions or self._mel.mel_count != config.audio_config.num_mel_bins:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the feature extractor makes {self._mel.mel_count} x {frames} features,"
                f" the tower takes {config.audio_config.num_mel_bins} x {2 * positions}"
            )

    def preprocess_audio(self, clip: AudioClip, settings: Mapping[str, Any]) -> Features:
        """See `Hears`. Settings: `truncation`, whether what is too long loses its end; else it is refused."""
        if unknown := sorted(set(settings) - {TRUNCATION}):
            raise InvalidRequestError(f"unknown processor setting; there is {TRUNCATION}", param=unknown[0])
        samples = fitting_samples(clip, self._mel.most_samples, settings)
        frames = self._mel.frame_count(len(samples))
        rows = _pooled(row_count(frames))
        if rows < 1:
            seconds = len(samples) / self.sampling_rate
            raise BadMediaError(f"the recording is too short for this model: {seconds:.4f} seconds")
        spectrum = self._mel(samples, self._mel.most_samples)[:, : frames + FRAMES_BEHIND]
        info = MediaInfo(row_count=rows, duration=clip.duration)
        return Features(info, {SPECTRUM: np.ascontiguousarray(spectrum)}, row_count(frames))

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`. Field: `audio_embeds` (rows, hidden)."""
        check_fields(fields, required=(ROWS,), optional=())
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        if rows > self._most_rows:
            raise BadEmbeddingsError(
                f"{ROWS} has {rows} rows; a recording of this model has up to {self._most_rows}", param=ROWS
            )
        return EncodedItem(MediaInfo(row_count=rows), {MAIN_TENSOR: fields[ROWS]})


class Qwen2AudioTower(InOneGo):
    """Encoder and projector with their weights; see `Tower`."""

    def __init__(self, module: Any, config: Any) -> None:
        self._module = module
        self.encoder = AudioEncoder(module.tower)
        self.hidden_size = int(config.get_text_config().hidden_size)

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`."""
        import torch

        spectra = [torch.from_numpy(features.arrays[SPECTRUM]) for features in batch]
        # What is odd at a clip's end would be averaged with padding, and is left out.
        counts = [2 * features.info.row_count for features in batch]
        with torch.inference_mode():
            heard = self.encoder.rows(spectra, [features.token_cost for features in batch])
            return [
                {MAIN_TENSOR: self._projected(rows[:count])}
                for rows, count in zip(heard, counts, strict=True)
            ]

    def _projected(self, rows: torch.Tensor) -> torch.Tensor:
        """(2 x count, width) to (count, hidden)."""
        tower = self._module.tower
        pooled = tower.avg_pooler(rows.T[None])[0].T
        projected: torch.Tensor = self._module.projector(tower.layer_norm(pooled))
        return projected

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. The layers alone."""
        return self.encoder.use_kernels(team)


class Qwen2AudioFamily(PlainTextFamily):
    """Factory of the parts of one Qwen2-Audio checkpoint; see `Family`."""

    model_type = "qwen2_audio"
    modalities: tuple[Modality, ...] = ("audio",)
    prefixes = AUDIO_TOWER_AND_PROJECTOR

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return Qwen2AudioPreprocessor(self._checkpoint, self.config())

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = self.config()
        config.audio_config._attn_implementation = "sdpa"
        tower = Qwen2AudioTower(self._encoder_half(lambda: _build_tower(config), device, dtype), config)
        tower.encoder.use_segments(device, dtype)
        return tower

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        # The template writes marks and a number around the placeholder: only it knows where.
        return PlainLayout(
            int(self.config().audio_token_index), "<|audio_bos|><|AUDIO|><|audio_eos|>", "audio"
        )


def _pooled(rows: int) -> int:
    """Rows that are left of so many before the pooling."""
    return rows // 2


def _build_tower(config: Any) -> nn.Module:
    from torch import nn
    from transformers.models.qwen2_audio.modeling_qwen2_audio import (
        Qwen2AudioEncoder,
        Qwen2AudioMultiModalProjector,
    )

    module = nn.Module()
    module.tower = Qwen2AudioEncoder(config.audio_config)
    module.projector = Qwen2AudioMultiModalProjector(config)
    return module
