"""Voxtral: Whisper's encoder over windows of 30 seconds, stacks of its rows projected, Llama behind.

A recording is padded with silence to whole windows, of which all is heard. Knows both halves of
the family, each made apart. Does not know who runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.audio_tower import AudioEncoder
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
from shared.families.plain_layout import PlainLayout
from shared.families.tensor_names import AUDIO_TOWER_AND_PROJECTOR

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.kernels.library import Team

ROWS = "audio_embeds"
SPECTRUM = "input_features"
DEFAULT_AUDIO_ID = 24
"""Of `[AUDIO]` in Mistral's vocabularies; transformers' processor knows no other."""


@dataclass(frozen=True, slots=True)
class Window:
    """What the encoder takes at once.

    Attributes:
        frames: of the spectrogram.
        tower_rows: that the encoder makes of them.
        rows: that the projector makes of these.
    """

    frames: int
    tower_rows: int
    rows: int

    @classmethod
    def of(cls, config: Any) -> Window:
        """The windows of a configuration.

        Raises:
            InvalidRequestError: stacks do not fill a window.
        """
        audio = config.audio_config
        stacked = int(audio.max_source_positions) * int(audio.hidden_size)
        if stacked % int(audio.intermediate_size):
            raise InvalidRequestError(
                f"{audio.max_source_positions} rows of {audio.hidden_size} numbers are no whole stacks of"
                f" {audio.intermediate_size}"
            )
        positions = int(audio.max_source_positions)
        return cls(2 * positions, positions, stacked // int(audio.intermediate_size))


class VoxtralPreprocessor(AudioAlone):
    """Recordings of any length and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._mel = LogMel.of(checkpoint)
        self._window = Window.of(config)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self.sampling_rate = self._mel.sampling_rate
        self.most_samples = self._window.frames * self._mel.hop_length
        if self._mel.mel_count != config.audio_config.num_mel_bins:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the feature extractor makes {self._mel.mel_count} bands, the encoder"
                f" takes {config.audio_config.num_mel_bins}"
            )

    def preprocess_audio(self, clip: AudioClip, settings: Mapping[str, Any]) -> Features:
        """See `Hears`. There are no settings."""
        if settings:
            raise InvalidRequestError("unknown processor setting; there are none", param=sorted(settings)[0])
        count = -(-len(clip.samples) // self.most_samples)
        spectrum = self._mel(clip.samples, count * self.most_samples)
        info = MediaInfo(row_count=count * self._window.rows, duration=clip.duration)
        return Features(info, {SPECTRUM: spectrum}, count * self._window.tower_rows)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`. Field: `audio_embeds` (rows of whole windows, hidden)."""
        check_fields(fields, required=(ROWS,), optional=())
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        if rows % self._window.rows:
            raise BadEmbeddingsError(
                f"{ROWS} has {rows} rows; recordings of this model have {self._window.rows} for each window",
                param=ROWS,
            )
        return EncodedItem(MediaInfo(row_count=rows), {MAIN_TENSOR: fields[ROWS]})


class VoxtralTower:
    """Encoder and projector with their weights; see `Tower`."""

    def __init__(self, module: Any, config: Any) -> None:
        self._module = module
        self._window = Window.of(config)
        self.encoder = AudioEncoder(module.tower)
        self.hidden_size = int(config.get_text_config().hidden_size)

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`."""
        import torch

        window, counts = self._window, [features.info.row_count for features in batch]
        with torch.inference_mode():
            spectra = [torch.from_numpy(features.arrays[SPECTRUM]) for features in batch]
            windows = [part for spectrum in spectra for part in torch.split(spectrum, window.frames, dim=1)]
            heard = self.encoder.rows(windows, [window.tower_rows] * len(windows))
            states = self._module.tower.layer_norm(torch.cat(heard))
            rows = self._module.projector(states.reshape(sum(counts), -1))
        return [{MAIN_TENSOR: part} for part in torch.split(rows, counts)]

    def split(self, features: Features) -> list[Features]:
        """See `Tower`. Windows do not see each other."""
        window, spectrum = self._window, features.arrays[SPECTRUM]
        info = replace(features.info, row_count=window.rows)
        return [
            Features(
                info,
                {SPECTRUM: np.ascontiguousarray(spectrum[:, first : first + window.frames])},
                window.tower_rows,
            )
            for first in range(0, spectrum.shape[1], window.frames)
        ]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. The layers alone."""
        return self.encoder.use_kernels(team)


class VoxtralFamily(PlainTextFamily):
    """Factory of the parts of one Voxtral checkpoint; see `Family`."""

    model_type = "voxtral"
    modalities: tuple[Modality, ...] = ("audio",)
    prefixes = AUDIO_TOWER_AND_PROJECTOR

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return VoxtralPreprocessor(self._checkpoint, self.config())

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        config = self.config()
        config.audio_config._attn_implementation = "sdpa"
        tower = VoxtralTower(self._encoder_half(lambda: _build_tower(config), device, dtype), config)
        tower.encoder.use_segments(device, dtype)
        return tower

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        audio_id = self.config().audio_token_id
        return PlainLayout(
            DEFAULT_AUDIO_ID if audio_id is None else int(audio_id), "[BEGIN_AUDIO][AUDIO]", "audio"
        )


def _build_tower(config: Any) -> nn.Module:
    from torch import nn
    from transformers.models.voxtral.modeling_voxtral import VoxtralEncoder, VoxtralMultiModalProjector

    module = nn.Module()
    module.tower = VoxtralEncoder(config.audio_config)
    module.projector = VoxtralMultiModalProjector(config)
    return module
