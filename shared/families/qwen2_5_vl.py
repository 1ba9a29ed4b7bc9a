"""Qwen2.5-VL: as Qwen2-VL, with windows in the tower, and videos whose positions follow the clock.

Knows what differs from Qwen2-VL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shared.families.base import EncodedItem, Features, Modality, Preprocessor, RawTensor, VideoClip
from shared.families.config import model_config
from shared.families.embeddings import check_fields, read_one_number
from shared.families.qwen2_vl import FIELDS, Qwen2VLFamily, Qwen2VLPreprocessor

if TYPE_CHECKING:
    from torch import nn

SECONDS = "second_per_grid_ts"


class Qwen25VLPreprocessor(Qwen2VLPreprocessor):
    """Says of videos how fast they run; see `Preprocessor`."""

    def preprocess_video(self, clip: VideoClip, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. As for Qwen2-VL, with the seconds between two steps."""
        features = super().preprocess_video(clip, settings)
        seconds = int(self._vision.temporal_patch_size) / clip.sampled_rate
        features.info = replace(features.info, seconds_per_grid=seconds)
        return features

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: as for Qwen2-VL, and of videos `second_per_grid_ts`, one number, or as
        many as there are videos, all the same; 1 second where it is missing, as in
        transformers.
        """
        optional = (SECONDS,) if modality == "video" else ()
        check_fields(fields, required=FIELDS[modality], optional=optional)
        item = self._accepted(modality, fields)
        if SECONDS in fields:
            seconds = read_one_number(SECONDS, fields[SECONDS], len(item.info.grids))
            item.info = replace(item.info, seconds_per_grid=seconds)
        return item


class Qwen25VLFamily(Qwen2VLFamily):
    """Factory of the parts of one Qwen2.5-VL checkpoint; see `Family`."""

    model_type = "qwen2_5_vl"

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return Qwen25VLPreprocessor(self._checkpoint, model_config(self._checkpoint), self.video_defaults)

    def _steps_per_second(self) -> float | None:
        return float(self._checkpoint.config.get("vision_config", {}).get("tokens_per_second", 4))

    def _build_tower(self, config: Any) -> nn.Module:
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

        module: nn.Module = modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel(config)
        return module

    def _build_text_model(self, config: Any) -> nn.Module:
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

        module: nn.Module = modeling_qwen2_5_vl.Qwen2_5_VLTextModel(config)
        return module
