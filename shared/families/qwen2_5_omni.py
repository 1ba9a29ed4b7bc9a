"""Qwen2.5-Omni's thinker: Qwen2.5-VL's tower and language model, ears beside them, all in one prompt.

Knows both halves of the family, each made apart. Does not know who runs them. What speaks (the talker and
what is behind it) is not served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import BadEmbeddingsError, BadMediaError, InvalidRequestError
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
    VideoClip,
)
from shared.families.clip_length import TRUNCATION, fitting_samples
from shared.families.config import model_config
from shared.families.embeddings import check_fields, check_rows
from shared.families.heard_videos import Clock, Order, order_of
from shared.families.mel import LogMel
from shared.families.mrope import AXES
from shared.families.named_tokens import named_tokens
from shared.families.omni_layout import OmniIds, OmniLayout
from shared.families.pixel_bounds import PixelBounds
from shared.families.qwen2_5_vl import Qwen25VLFamily, Qwen25VLPreprocessor
from shared.families.qwen2_vl import Qwen2VLTower
from shared.families.video_settings import read_own_settings
from shared.families.windowed_audio import WindowedAudioEncoder, pooled_row_count

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.families.weights import Prefixes
    from shared.kernels.library import Team

AUDIO_ROWS = "audio_embeds"
SPECTRUM = "input_features"
WITH_SOUND = "use_audio_in_video"
"""The setting that has a video taken with its sound."""

PREFIXES: Prefixes = {
    f"{outer}{name}": owner
    for outer in ("", "thinker.")
    for name, owner in {
        "visual.": ("encoder", "visual."),
        "audio_tower.": ("encoder", "audio_tower."),
        "model.": ("language", "model."),
        "model.visual.": ("encoder", "visual."),
        "model.audio_tower.": ("encoder", "audio_tower."),
        "model.language_model.": ("language", "model."),
        "lm_head.": ("language", "lm_head."),
    }.items()
} | {"talker.": ("neither", ""), "token2wav.": ("neither", "")}  # type: ignore[assignment]
"""As the hub's files name tensors, as a thinker alone has them, and as newer transformers might."""


class OmniPreprocessor(Qwen25VLPreprocessor):
    """Pictures, videos with and without sound, recordings, precomputed embeddings; see `Hears`."""

    def __init__(self, checkpoint: Checkpoint, config: Any, video_defaults: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, config, video_defaults)
        # transformers' processor has a size of its own for videos, whatever files say of pictures.
        size = read_own_settings(checkpoint).get("size", video_defaults["size"])
        self._frame_bounds = PixelBounds.of_size(size)
        self._mel = LogMel.of(checkpoint)
        self.sampling_rate = self._mel.sampling_rate
        self.most_samples = self._mel.most_samples
        bands = int(config.audio_config.num_mel_bins)
        if self._mel.mel_count != bands:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the feature extractor makes {self._mel.mel_count} bands,"
                f" the tower takes {bands}"
            )

    def preprocess_audio(self, clip: AudioClip, settings: Mapping[str, Any]) -> Features:
        """See `Hears`. Settings: `truncation`, whether what is too long loses its end; else it is refused."""
        if unknown := sorted(set(settings) - {TRUNCATION}):
            raise InvalidRequestError(f"unknown processor setting; there is {TRUNCATION}", param=unknown[0])
        spectrum, rows = self._heard(clip, settings)
        info = MediaInfo(row_count=rows, duration=clip.duration)
        return Features(info, {SPECTRUM: spectrum}, 2 * rows)

    def preprocess_video(self, clip: VideoClip, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. Settings: those of pictures, and `use_audio_in_video`."""
        seen = {name: value for name, value in settings.items() if name not in (WITH_SOUND, TRUNCATION)}
        features = super().preprocess_video(clip, seen)
        if clip.sound is None:
            return features
        spectrum, rows = self._heard(clip.sound, settings)
        info = replace(features.info, row_count=features.info.row_count + rows, sound_row_count=rows)
        return Features(info, features.arrays | {SPECTRUM: spectrum}, features.token_cost + 2 * rows)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: as for Qwen2.5-VL; of recordings `audio_embeds` (rows, hidden).
        """
        if modality != "audio":
            return super().accept_embeddings(modality, fields)
        check_fields(fields, required=(AUDIO_ROWS,), optional=())
        rows = check_rows(AUDIO_ROWS, fields[AUDIO_ROWS], self._hidden_size)
        most = pooled_row_count(self._mel.frame_count(self._mel.most_samples))
        if rows > most:
            raise BadEmbeddingsError(
                f"{AUDIO_ROWS} has {rows} rows; a recording of this model has up to {most}", param=AUDIO_ROWS
            )
        return EncodedItem(MediaInfo(row_count=rows), {MAIN_TENSOR: fields[AUDIO_ROWS]})

    def _heard(self, clip: AudioClip, settings: Mapping[str, Any]) -> tuple[Any, int]:
        """The spectrogram (mels, frames) of a recording, and the rows that it will give."""
        samples = fitting_samples(clip, self._mel.most_samples, settings)
        frames = self._mel.frame_count(len(samples))
        rows = pooled_row_count(frames)
        if rows < 1:
            seconds = len(samples) / self.sampling_rate
            raise BadMediaError(f"the recording is too short for this model: {seconds:.4f} seconds")
        return np.ascontiguousarray(self._mel.heard(samples)), rows


class OmniTower:
    """Eyes and ears with their weights; see `Tower`."""

    def __init__(self, eyes: Qwen2VLTower, ears: WindowedAudioEncoder, merge_size: int, clock: Clock) -> None:
        self._eyes = eyes
        self._ears = ears
        self._merge_size = merge_size
        self._clock = clock
        self.hidden_size = eyes.hidden_size

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`. Pictures and videos run together, and so do recordings."""
        sights = [self._sight(one) for one in batch if _is_seen(one)]
        seen = iter(self._eyes.encode(sights) if sights else [])
        heard = iter(self._hear([one for one in batch if SPECTRUM in one.arrays]))
        return [self._item(features, seen, heard) for features in batch]

    def split(self, features: Features) -> list[Features]:
        """See `Tower`. A video without sound as for Qwen2-VL; others are encoded in one go."""
        return [features] if SPECTRUM in features.arrays else self._eyes.split(features)

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`."""
        sees, hears = self._eyes.use_kernels(team), self._ears.use_kernels(team)
        return sees or hears

    def _hear(self, batch: Sequence[Features]) -> list[torch.Tensor]:
        import torch

        if not batch:
            return []
        return self._ears.rows([torch.from_numpy(one.arrays[SPECTRUM]) for one in batch])

    def _sight(self, features: Features) -> Features:
        """What is seen of an item."""
        info = features.info
        if not info.sound_row_count:
            return features
        arrays = {name: array for name, array in features.arrays.items() if name != SPECTRUM}
        seen = replace(info, row_count=info.row_count - info.sound_row_count, sound_row_count=0)
        return Features(seen, arrays, features.token_cost)

    def _item(self, features: Features, seen: Any, heard: Any) -> dict[str, torch.Tensor]:
        if not _is_seen(features):
            return {MAIN_TENSOR: next(heard)}
        rows = next(seen)[MAIN_TENSOR]
        if SPECTRUM in features.arrays:
            order = order_of(features.info, self._merge_size, self._clock)
            rows = _in_order(rows, next(heard), order)
        return {MAIN_TENSOR: rows}


def _is_seen(features: Features) -> bool:
    return set(features.arrays) != {SPECTRUM}


def _in_order(seen: torch.Tensor, heard: torch.Tensor, order: Order) -> torch.Tensor:
    """The rows of a video and of its sound as the prompt reads them."""
    import torch

    of_sound = torch.from_numpy(order.of_sound).to(seen.device)
    places = torch.from_numpy(order.places).to(seen.device)
    rows = torch.empty((len(places), seen.shape[1]), dtype=seen.dtype, device=seen.device)
    rows[~of_sound] = seen[places[~of_sound]]
    rows[of_sound] = heard[places[of_sound]]
    return rows


class OmniFamily(Qwen25VLFamily):
    """Factory of the parts of one Qwen2.5-Omni checkpoint, whole or its thinker alone; see `Family`."""

    model_type = "qwen2_5_omni"
    modalities: tuple[Modality, ...] = ("image", "video", "audio")
    prefixes = PREFIXES

    def config(self) -> Any:
        """See `Family`. The thinker's."""
        config = model_config(self._checkpoint)
        return getattr(config, "thinker_config", config)

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return OmniPreprocessor(self._checkpoint, self.config(), self.video_defaults)

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        from shared.families.tower_attention import prepare_tower
        from shared.families.weights import load_half

        config = self.config()
        config.vision_config._attn_implementation = "sdpa"
        config.audio_config._attn_implementation = "sdpa"
        module: Any = load_half(
            lambda: _build_towers(config), self._checkpoint, "encoder", self.prefixes, device, dtype
        )
        prepare_tower(module.visual, config.vision_config, device, dtype)
        eyes = Qwen2VLTower(module.visual, self.hidden_size(), self._recipe())
        ears = WindowedAudioEncoder(module.audio_tower)
        return OmniTower(eyes, ears, int(config.vision_config.spatial_merge_size), _clock(config))

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self.config()
        ids = OmniIds(
            image=int(config.image_token_id),
            video=int(config.video_token_id),
            audio=int(config.audio_token_id),
            # transformers' configuration has no defaults for these.
            vision_start=int(getattr(config, "vision_start_token_id", 151652)),
            vision_end=int(getattr(config, "vision_end_token_id", 151653)),
            audio_start=int(config.audio_start_token_id),
            audio_end=int(config.audio_end_token_id),
        )
        merge_size = int(config.vision_config.spatial_merge_size)
        return OmniLayout(ids, merge_size, _clock(config), named_tokens(self._checkpoint.folder))

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`."""
        from shared.families.decoder import load_decoder

        return load_decoder(
            _build_text_model,
            self.config(),
            self._checkpoint,
            self.prefixes,
            device,
            dtype,
            attention_name,
            AXES,
        )


def _clock(config: Any) -> Clock:
    return Clock(float(config.position_id_per_seconds), float(config.seconds_per_chunk))


def _build_towers(config: Any) -> nn.Module:
    from torch import nn
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

    module = nn.Module()
    module.visual = omni.Qwen2_5OmniVisionEncoder(config.vision_config)
    module.audio_tower = omni.Qwen2_5OmniAudioEncoder(config.audio_config)
    return module


def _build_text_model(config: Any) -> nn.Module:
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

    module: nn.Module = omni.Qwen2_5OmniThinkerTextModel(config)
    return module
