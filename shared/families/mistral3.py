"""Mistral 3: Pixtral's tower, whose patches are merged in squares before the projector.

Knows both halves of the family, each made apart. The norm and the merging layer
belong to the encoder half. Does not know who runs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.errors import InvalidRequestError
from shared.families.base import Preprocessor, PromptLayout, Tower
from shared.families.config import model_config
from shared.families.defaults import PlainTextFamily
from shared.families.llava import PIXTRAL
from shared.families.pixtral import PixtralPreprocessor, PixtralTower, load_pixtral_half
from shared.families.pixtral_layout import PixtralLayout
from shared.families.tensor_names import TOWER_AND_PROJECTOR

if TYPE_CHECKING:
    import torch


class Mistral3Family(PlainTextFamily):
    """Factory of the parts of one Mistral 3 checkpoint; see `Family`."""

    model_type = "mistral3"
    prefixes = TOWER_AND_PROJECTOR

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        config = self._config()
        return PixtralPreprocessor(self._checkpoint, config, merge_size=int(config.spatial_merge_size))

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        from transformers.models.mistral3.modeling_mistral3 import Mistral3MultiModalProjector

        config = self._config()
        module = load_pixtral_half(
            Mistral3MultiModalProjector, config, self._checkpoint, self.prefixes, device, dtype
        )
        return PixtralTower(module, config, projector_takes_sizes=True)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        config = self._checkpoint.config
        image_id = int(config.get("image_token_index", config.get("image_token_id", 10)))
        return PixtralLayout.of(self._checkpoint, image_id)

    def _config(self) -> Any:
        """The configuration, for the encoder half.

        Raises:
            InvalidRequestError: it asks for what the family has not.
        """
        config = model_config(self._checkpoint)
        if config.vision_config.model_type != PIXTRAL:
            raise InvalidRequestError(
                f"{self._checkpoint.folder} has a {config.vision_config.model_type} tower;"
                f" mistral3 is served with {PIXTRAL}"
            )
        layers = config.vision_feature_layer
        if not isinstance(layers, int) and len(layers) != 1:
            raise InvalidRequestError(
                f"{self._checkpoint.folder}: patches are merged from one layer;"
                f" vision_feature_layer is {layers}"
            )
        return config
