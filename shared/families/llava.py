"""LLaVA: a CLIP or SigLIP tower with a projector, rows of a fixed number, one rotary axis.

Knows both halves of the family, each made apart. Does not know who runs them,
nor towers without a fixed picture size (Pixtral's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.base import (
    MAIN_TENSOR,
    Checkpoint,
    EncodedItem,
    ExpandedPrompt,
    Features,
    LanguageModel,
    MediaInfo,
    Modality,
    Preprocessor,
    PromptLayout,
    RawTensor,
    Span,
    Tower,
)
from shared.families.clip_kernels import move_blocks
from shared.families.config import model_config
from shared.families.defaults import CommonFamily, InOneGo, PicturesAlone
from shared.families.embeddings import check_fields, check_rows, read_integers
from shared.families.image_processor import ImageProcessor
from shared.families.mrope import check_placeholder_count

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from shared.families.weights import Prefixes
    from shared.kernels.library import Team

ROWS = "image_embeds"
SIZES = "image_sizes"

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Rows of a tower's output in front of its patches."""

PREFIXES: Prefixes = {
    "vision_tower.": ("encoder", "tower."),
    "vision_tower.vision_model.": ("encoder", "tower."),
    "model.vision_tower.": ("encoder", "tower."),
    "model.vision_tower.vision_model.": ("encoder", "tower."),
    "multi_modal_projector.": ("encoder", "projector."),
    "model.multi_modal_projector.": ("encoder", "projector."),
    "language_model.model.": ("language", "model."),
    "model.language_model.": ("language", "model."),
    "language_model.lm_head.": ("language", "lm_head."),
    "lm_head.": ("language", "lm_head."),
}
"""As the hub's files name tensors, and as newer transformers save them."""


class LlavaPreprocessor(PicturesAlone):
    """Pictures and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any, row_count: int) -> None:
        self._processor = ImageProcessor(checkpoint)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self._row_count = row_count
        self._check_size(checkpoint, int(config.vision_config.image_size))

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. There are no settings."""
        if settings:
            raise InvalidRequestError(f"unknown processor setting {min(settings)!r}; this model has none")
        pixels = self._processor(picture)["pixel_values"]
        info = MediaInfo(row_count=self._row_count, image_size=(picture.height, picture.width))
        return Features(info, {"pixel_values": pixels}, self._row_count)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`.

        Fields: `image_embeds` (rows, hidden); `image_sizes` [2] or [1, 2] may be there.
        """
        check_fields(fields, required=(ROWS,), optional=(SIZES,))
        image_size = self._image_size(fields[SIZES]) if SIZES in fields else None
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        if rows != self._row_count:
            raise BadEmbeddingsError(
                f"{ROWS} has {rows} rows; a picture of this model has {self._row_count}", param=ROWS
            )
        return EncodedItem(MediaInfo(row_count=rows, image_size=image_size), {MAIN_TENSOR: fields[ROWS]})

    def _check_size(self, checkpoint: Checkpoint, side: int) -> None:
        """Raises InvalidRequestError where the processor makes other sizes than the tower takes."""
        from PIL import Image

        *_, height, width = self._processor(Image.new("RGB", (side, 2 * side)))["pixel_values"].shape
        if (height, width) != (side, side):
            raise InvalidRequestError(
                f"{checkpoint.folder}: the image processor makes {width} x {height} pixels,"
                f" the tower takes {side} x {side}"
            )

    @staticmethod
    def _image_size(tensor: RawTensor) -> tuple[int, int]:
        values = read_integers(SIZES, tensor)
        if values.shape not in ((2,), (1, 2)) or (values < 1).any():
            raise BadEmbeddingsError(f"{SIZES} is one height and one width, each at least 1", param=SIZES)
        height, width = map(int, values.reshape(-1))
        return height, width


class LlavaTower(InOneGo):
    """Vision tower and projector with their weights; see `Tower`."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        self._module: Any = module
        layers = config.vision_feature_layer
        self._layers = [layers] if isinstance(layers, int) else list(layers)
        self._drops_first = config.vision_feature_select_strategy == "default"
        self.hidden_size = int(config.get_text_config().hidden_size)

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`."""
        import torch

        weight = self._module.projector.linear_1.weight
        pixels = torch.from_numpy(np.concatenate([features.arrays["pixel_values"] for features in batch]))
        with torch.inference_mode():
            output = self._module.tower(pixels.to(weight.device, weight.dtype), output_hidden_states=True)
            chosen = torch.cat([output.hidden_states[layer] for layer in self._layers], dim=-1)
            rows = self._module.projector(chosen[:, 1:] if self._drops_first else chosen)
        return [{MAIN_TENSOR: part} for part in rows]

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. The blocks alone: patches and projector are a few percent of the work."""
        return move_blocks(self._module.tower, self._module.tower.config.hidden_act, team)


@dataclass(frozen=True, slots=True)
class LlavaLayout:
    """Grows `<image>` to a picture's rows; one rotary axis.

    Attributes:
        image_id: token id of the placeholder.
    """

    image_id: int

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return {"image": self.image_id}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        assert modality == "image", modality
        return "<image>"

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens)."""
        check_placeholder_count(token_ids, self.image_id, len(media))
        expanded: list[int] = []
        spans: list[Span] = []
        for token in token_ids:
            if token != self.image_id:
                expanded.append(token)
                continue
            item = len(spans)
            spans.append(Span(item, start=len(expanded), length=media[item].row_count))
            expanded.extend([token] * media[item].row_count)
        positions = np.arange(len(expanded), dtype=np.int64)[np.newaxis]
        return ExpandedPrompt(expanded, spans, positions, next_position=len(expanded))


class LlavaFamily(CommonFamily):
    """Factory of the parts of one LLaVA checkpoint; see `Family`."""

    model_type = "llava"

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return LlavaPreprocessor(self._checkpoint, model_config(self._checkpoint), self._row_count())

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        from shared.families.weights import load_half

        config = model_config(self._checkpoint)
        config.vision_config._attn_implementation = "sdpa"
        self._row_count()  # refuses a kind of tower that is not known
        module = load_half(lambda: _build_tower(config), self._checkpoint, "encoder", PREFIXES, device, dtype)
        return LlavaTower(module, config)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self._checkpoint.config
        return LlavaLayout(int(config.get("image_token_index", config.get("image_token_id", 32000))))

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`."""
        from shared.families.decoder import load_decoder

        config = model_config(self._checkpoint)
        return load_decoder(
            _build_text_model, config, self._checkpoint, PREFIXES, device, dtype, attention_name, axes=1
        )

    def _row_count(self) -> int:
        config = model_config(self._checkpoint)
        vision = config.vision_config
        if vision.model_type not in CLASS_TOKENS:
            raise InvalidRequestError(
                f"{self._checkpoint.folder} has a {vision.model_type} tower; llava is served with"
                f" {' or '.join(sorted(CLASS_TOKENS))}"
            )
        patches = (vision.image_size // vision.patch_size) ** 2
        dropped = 1 if config.vision_feature_select_strategy == "default" else 0
        return int(patches + CLASS_TOKENS[vision.model_type] - dropped)


def _build_tower(config: Any) -> nn.Module:
    from torch import nn
    from transformers import AutoModel
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    tower = AutoModel.from_config(config.vision_config)
    # Weights are stored without the wrapper that some versions put around the tower.
    return nn.ModuleDict(
        {"tower": getattr(tower, "vision_model", tower), "projector": LlavaMultiModalProjector(config)}
    )


def _build_text_model(config: Any) -> nn.Module:
    from transformers import AutoModel

    module: nn.Module = AutoModel.from_config(config)
    return module
