"""How Phi-4-multimodal hears: a conformer behind convolutions, and two projections, for prompts with and
without pictures.

Knows recordings and the weights behind them. Does not know pictures, nor the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import BadMediaError, InvalidRequestError
from shared.families.base import AudioClip, Checkpoint, Features, MediaInfo
from shared.families.kaldi_mel import KaldiMel

if TYPE_CHECKING:
    import torch
    from torch import nn

SPECTRUM = "audio_input_features"
WITH_PICTURES = "with_pictures"
"""Features of a recording in a prompt with pictures: a single true value."""

PROJECTION_MODE = "audio_projection_mode"
"""The setting by transformers' name."""

SPEECH, VISION = "speech", "vision"
"""Its values: for prompts of recordings alone, and for those with pictures too."""

SECONDS_IN_ONE_GO = 40
"""Of recordings that are written down, as the model's authors advise; it hears longer ones too."""


class Phi4Ears:
    """Recordings to features."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._mel = KaldiMel.of(checkpoint.folder)
        self.sampling_rate = self._mel.sampling_rate
        audio = config.audio_config
        if self._mel.mel_count != audio.input_size:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the feature extractor makes {self._mel.mel_count} bands, the encoder"
                f" takes {audio.input_size}"
            )
        if self._mel.row_count(audio.time_reduction) != 1 or audio.downsample_rate != 1:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the feature extractor counts on other rows than the encoder makes"
            )

    def features(self, clip: AudioClip, settings: Mapping[str, Any]) -> Features:
        """A recording's spectrogram. Settings: `audio_projection_mode`, "speech" or "vision".

        Raises:
            BadMediaError: it is shorter than a frame.
            InvalidRequestError: a setting is unknown or has another value.
        """
        for name, value in settings.items():
            if name != PROJECTION_MODE:
                raise InvalidRequestError(
                    f"unknown processor setting; there is {PROJECTION_MODE}", param=name
                )
            if value not in (SPEECH, VISION):
                raise InvalidRequestError(f'expected "{SPEECH}" or "{VISION}"', param=name)
        if len(clip.samples) < self._mel.fewest_samples:
            raise BadMediaError(
                f"the recording is too short: it has {len(clip.samples)} samples at {clip.sampling_rate} a"
                f" second, this model takes {self._mel.fewest_samples} or more"
            )
        arrays: dict[str, Any] = {SPECTRUM: self._mel(clip.samples)}
        if settings.get(PROJECTION_MODE) == VISION:
            arrays[WITH_PICTURES] = np.ones(1, np.bool_)
        rows = self._mel.row_count(len(arrays[SPECTRUM]))
        return Features(MediaInfo(rows, duration=clip.duration), arrays, rows)


def hear(module: Any, features: Features) -> torch.Tensor:
    """Rows (rows, hidden) of one recording: beside others, transformers pads what it must not see.

    Args:
        module: transformers' audio embedding, which holds the encoder.
    """
    import torch
    from torch.nn import functional

    seen = WITH_PICTURES in features.arrays
    up = module.up_proj_for_vision_speech if seen else module.up_proj_for_speech
    down = module.down_proj_for_vision_speech if seen else module.down_proj_for_speech
    spectrum = torch.from_numpy(features.arrays[SPECTRUM]).to(up.weight.device, up.weight.dtype)
    states = module.encoder(spectrum[None], None)[0, : features.info.row_count]
    rows: torch.Tensor = down(functional.gelu(up(states)))
    return rows


def build_audio_embedding(config: Any) -> nn.Module:
    """transformers' audio embedding; means and factors of its spectrograms are parameters like any."""
    import torch
    from torch import nn
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as modeling

    module: Any = modeling.Phi4MultimodalAudioEmbedding(config)
    norm = module.encoder.encoder_embedding
    for name in ("global_mean", "global_invstd"):
        values = getattr(norm, name)
        delattr(norm, name)
        norm.register_parameter(name, nn.Parameter(torch.empty_like(values)))
    built: nn.Module = module
    return built
