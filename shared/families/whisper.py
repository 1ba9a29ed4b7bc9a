"""Whisper: an audio encoder whose states a text decoder looks at across, in every layer.

Knows both halves of the family, each made apart. Does not know who runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import BadEmbeddingsError, InvalidRequestError, MediaTooLargeError
from shared.families.audio_tower import AudioEncoder
from shared.families.base import (
    MAIN_TENSOR,
    AudioClip,
    Checkpoint,
    EncodedItem,
    Features,
    LanguageModel,
    MediaInfo,
    Modality,
    Preprocessor,
    PromptLayout,
    RawTensor,
    Tower,
)
from shared.families.clip_length import TRUNCATION, fitting_samples
from shared.families.defaults import AudioAlone, CommonFamily, InOneGo
from shared.families.embeddings import check_fields, check_rows
from shared.families.looking import padding_behind
from shared.families.mel import LogMel
from shared.families.whisper_layout import ROW_MULTIPLE, WhisperLayout

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.families.weights import Prefixes
    from shared.kernels.library import Team

ROWS = "audio_embeds"
SPECTRUM = "input_features"

PREFIXES: Prefixes = {
    "model.encoder.": ("encoder", ""),
    "encoder.": ("encoder", ""),
    "model.decoder.": ("language", "model."),
    "decoder.": ("language", "model."),
    "proj_out.": ("language", "lm_head."),
}


class WhisperPreprocessor(AudioAlone):
    """Recordings of up to a window's length, and precomputed states; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._mel = LogMel.of(checkpoint)
        self._width = int(config.d_model)
        self._row_count = int(config.max_source_positions)
        self.sampling_rate = self._mel.sampling_rate
        self.most_samples = self._mel.most_samples
        frames = self._mel.most_samples // self._mel.hop_length
        if frames != 2 * self._row_count or self._mel.mel_count != config.num_mel_bins:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the feature extractor makes {self._mel.mel_count} x {frames} features,"
                f" the encoder takes {config.num_mel_bins} x {2 * self._row_count}"
            )

    def preprocess_audio(self, clip: AudioClip, settings: Mapping[str, Any]) -> Features:
        """See `Hears`. Settings: `truncation`, whether what is too long loses its end; else it is refused.

        A window is always heard whole, silence behind the recording too: so the model was trained.
        """
        if unknown := sorted(set(settings) - {TRUNCATION}):
            raise InvalidRequestError(f"unknown processor setting; there is {TRUNCATION}", param=unknown[0])
        try:
            samples = fitting_samples(clip, self._mel.most_samples, settings)
        except MediaTooLargeError as error:
            raise MediaTooLargeError(
                f"{error.message}. /v1/audio/transcriptions cuts longer recordings at quiet points"
            ) from error
        spectrum = self._mel(samples, self._mel.most_samples)
        info = MediaInfo(row_count=self._row_count, duration=len(samples) / clip.sampling_rate)
        return Features(info, {SPECTRUM: np.ascontiguousarray(spectrum)}, self._row_count)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`. Field: `audio_embeds` (rows of a window, width), the encoder's states."""
        check_fields(fields, required=(ROWS,), optional=())
        rows = check_rows(ROWS, fields[ROWS], self._width)
        if rows != self._row_count:
            raise BadEmbeddingsError(
                f"{ROWS} has {rows} rows; a recording of this model has {self._row_count}", param=ROWS
            )
        return EncodedItem(MediaInfo(row_count=rows), {MAIN_TENSOR: fields[ROWS]})


class WhisperTower(InOneGo):
    """The encoder with its weights; see `Tower`."""

    def __init__(self, module: Any, config: Any) -> None:
        self._module = module
        self.encoder = AudioEncoder(module)
        self.hidden_size = int(config.d_model)

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`."""
        import torch

        spectra = [torch.from_numpy(features.arrays[SPECTRUM]) for features in batch]
        with torch.inference_mode():
            heard = self.encoder.rows(spectra, [features.info.row_count for features in batch])
            return [{MAIN_TENSOR: self._module.layer_norm(rows)} for rows in heard]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. The layers alone."""
        return self.encoder.use_kernels(team)


class WhisperFamily(CommonFamily):
    """Factory of the parts of one Whisper checkpoint; see `Family`."""

    model_type = "whisper"
    modalities: tuple[Modality, ...] = ("audio",)

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return WhisperPreprocessor(self._checkpoint, self.config())

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        from shared.families.weights import load_half

        config = self.config()
        config._attn_implementation = "sdpa"
        module = load_half(
            lambda: _build_encoder(config), self._checkpoint, "encoder", PREFIXES, device, dtype
        )
        tower = WhisperTower(module, config)
        tower.encoder.use_segments(device, dtype)
        return tower

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        return WhisperLayout.of(self._checkpoint, self.config())

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`. Its attention is its own, as text and recordings are attended to apart."""
        from shared.families.whisper_decoder import load_whisper_decoder

        return load_whisper_decoder(self.config(), self._checkpoint, PREFIXES, device, dtype)

    def context_length(self) -> int:
        """See `Family`. The rows in front count too."""
        config = self.config()
        rows = int(config.max_source_positions)
        return rows + padding_behind(rows, ROW_MULTIPLE) + int(config.max_target_positions)

    def hidden_size(self) -> int:
        """See `Family`."""
        return int(self.config().d_model)

    def vocabulary_size(self) -> int:
        """See `Family`."""
        return int(self.config().vocab_size)


def _build_encoder(config: Any) -> nn.Module:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    module: nn.Module = WhisperEncoder(config)
    return module
