"""GLM-4.1V: a tower and a prompt of its own, the rest as in Qwen3-VL.

Knows both halves of the family, each made apart. Does not know who runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shared.families.base import Grid, Preprocessor, PromptLayout, Tower
from shared.families.config import model_config
from shared.families.qwen2_vl import VIDEO_DEFAULTS as QWEN2_DEFAULTS
from shared.families.qwen2_vl import Qwen2VLFamily, Qwen2VLTower
from shared.families.timed_layout import ItemWords, TimedLayout
from shared.families.timed_videos import TimedVideoPreprocessor

if TYPE_CHECKING:
    from torch import nn

VIDEO_DEFAULTS: Mapping[str, Any] = {
    **QWEN2_DEFAULTS,
    "size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 2 * 30000},
}
"""Those of transformers' Glm4vVideoProcessor."""

DEPTH = 2
"""Every second frame gives a group its time, as in transformers' Glm4vProcessor."""


def group_times(times: tuple[float, ...]) -> tuple[float, ...]:
    """Whole seconds of the first frame of each group, as the prompt says them."""
    return tuple(float(int(seconds)) for seconds in times[::DEPTH])


def write_group(seconds: float) -> str:
    """A group of frames and its time, as in transformers' Glm4vProcessor."""
    return f"<|begin_of_image|><|image|><|end_of_image|>{int(seconds)}"


WORDS = ItemWords(
    placeholders={
        "image": "<|begin_of_image|><|image|><|end_of_image|>",
        "video": "<|begin_of_video|><|video|><|end_of_video|>",
    },
    picture="<|image|>",
    between={
        "image": "<|end_of_image|><|begin_of_image|>",
        "video": "<|end_of_video|><|begin_of_video|>",
    },
    group=write_group,
)


class Glm4vTower(Qwen2VLTower):
    """The vision tower with its weights; see `Tower`."""

    def _module_grids(self, grid: Grid) -> list[tuple[int, int, int]]:
        # Each group of frames is a picture: positions are interpolated for each.
        return [(1, grid.height, grid.width)] * grid.time


class Glm4vFamily(Qwen2VLFamily):
    """Factory of the parts of one GLM-4V checkpoint; see `Family`."""

    model_type = "glm4v"
    video_defaults: Mapping[str, Any] = VIDEO_DEFAULTS

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        config = model_config(self._checkpoint)
        return TimedVideoPreprocessor(self._checkpoint, config, self.video_defaults, DEPTH, group_times)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self._checkpoint.config
        image_id = int(config.get("image_token_id", 151343))
        return TimedLayout(
            image_id=image_id,
            video_id=int(config.get("video_token_id", 151344)),
            # Groups of frames are written as pictures.
            group_id=image_id,
            merge_size=self._merge_size(),
            words=WORDS,
        )

    def _make_tower(self, module: nn.Module) -> Tower:
        return Glm4vTower(module, self.hidden_size(), self._recipe())

    def _build_tower(self, config: Any) -> nn.Module:
        from transformers.models.glm4v import modeling_glm4v

        module: nn.Module = modeling_glm4v.Glm4vVisionModel(config)
        return module

    def _build_text_model(self, config: Any) -> nn.Module:
        from transformers.models.glm4v import modeling_glm4v

        module: nn.Module = modeling_glm4v.Glm4vTextModel(config)
        return module
