"""Granite Speech: a conformer that attends within blocks, a Q-Former over windows of its rows, Granite behind
with an adapter for prompts that hold recordings.

Knows both halves of the family, each made apart. Does not know who runs them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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
)
from shared.families.defaults import AudioAlone, CommonFamily, InOneGo
from shared.families.embeddings import check_fields, check_rows
from shared.families.htk_mel import PairedMel
from shared.families.lora_files import Adapter, adapter_in, has_adapter
from shared.families.plain_layout import PlainLayout
from shared.families.variant_layout import VariantLayout

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared.families.weights import Prefixes
    from shared.kernels.library import Team

logger = logging.getLogger(__name__)

ROWS = "audio_embeds"
SPECTRUM = "input_features"
PLACEHOLDER = "<|audio|>"
SPEECH = "speech"
"""The variant that the checkpoint's adapter makes."""

SECONDS_IN_ONE_GO = 60
"""Of recordings that are written down; it hears longer ones too."""

COUNTERS = (".num_batches_tracked",)
"""Ends of names of tensors that only training reads."""

PREFIXES: Prefixes = {
    "encoder.": ("encoder", "encoder."),
    "projector.": ("encoder", "projector."),
    "model.encoder.": ("encoder", "encoder."),
    "model.projector.": ("encoder", "projector."),
    "language_model.model.": ("language", "model."),
    # As transformers 5.17 saves it.
    "language_model.model.model.": ("language", "model."),
    "model.language_model.": ("language", "model."),
    "language_model.lm_head.": ("language", "lm_head."),
    "lm_head.": ("language", "lm_head."),
}

_LANGUAGE_PARTS = ("language_model.model.", "model.language_model.")
"""What stands in an adapter's names where our module says "model."."""


@dataclass(frozen=True, slots=True)
class Windows:
    """How the projector cuts the encoder's rows.

    Attributes:
        length: rows of the encoder in a window.
        rows: of the projector for each.
    """

    length: int
    rows: int

    @classmethod
    def of(cls, config: Any) -> Windows:
        """The windows of a configuration."""
        return cls(int(config.window_size), int(config.window_size) // int(config.downsample_rate))

    def row_count(self, encoder_rows: int) -> int:
        """Rows of a recording; its last window counts whole."""
        return -(-encoder_rows // self.length) * self.rows


class GraniteSpeechPreprocessor(AudioAlone):
    """Recordings of any length and precomputed embeddings; see `Preprocessor`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._mel = PairedMel.of(checkpoint.folder)
        self._windows = Windows.of(config)
        self._hidden_size = int(config.get_text_config().hidden_size)
        self.sampling_rate = self._mel.sampling_rate
        self.most_samples = SECONDS_IN_ONE_GO * self.sampling_rate
        if self._mel.width != config.encoder_config.input_dim:
            raise InvalidRequestError(
                f"{checkpoint.folder}: the feature extractor makes rows of {self._mel.width} numbers, the"
                f" encoder takes {config.encoder_config.input_dim}"
            )

    def preprocess_audio(self, clip: AudioClip, settings: Mapping[str, Any]) -> Features:
        """See `Hears`. There are no settings."""
        if settings:
            raise InvalidRequestError("unknown processor setting; there are none", param=sorted(settings)[0])
        count = len(clip.samples)
        if count < self._mel.fewest_samples:
            raise BadMediaError(
                f"the recording is too short: it has {count} samples at {clip.sampling_rate} a second,"
                f" this model takes {self._mel.fewest_samples} or more"
            )
        spectrum = self._mel(clip.samples)
        info = MediaInfo(self._windows.row_count(len(spectrum)), duration=clip.duration)
        return Features(info, {SPECTRUM: spectrum}, len(spectrum))

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`. Field: `audio_embeds` (rows of whole windows, hidden)."""
        check_fields(fields, required=(ROWS,), optional=())
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        if rows % self._windows.rows:
            raise BadEmbeddingsError(
                f"{ROWS} has {rows} rows; recordings of this model have {self._windows.rows} for each window",
                param=ROWS,
            )
        return EncodedItem(MediaInfo(row_count=rows), {MAIN_TENSOR: fields[ROWS]})


class GraniteSpeechTower(InOneGo):
    """Encoder and projector with their weights; see `Tower`."""

    def __init__(self, module: Any, config: Any) -> None:
        self._module = module
        self.hidden_size = int(config.get_text_config().hidden_size)

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """See `Tower`. One recording after the other: convolutions would see padding."""
        import torch

        weight = self._module.encoder.input_linear.weight
        made = []
        with torch.inference_mode():
            for features in batch:
                spectrum = torch.from_numpy(features.arrays[SPECTRUM]).to(weight.device, weight.dtype)
                states = self._module.encoder(spectrum[None]).last_hidden_state
                made.append({MAIN_TENSOR: self._module.projector(states)[0]})
        return made

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. There are none for this structure."""
        logger.info("torch computes this tower: conformers are none of the known structures")
        return False


class GraniteSpeechFamily(CommonFamily):
    """Factory of the parts of one Granite Speech checkpoint; see `Family`."""

    model_type = "granite_speech"
    modalities: tuple[Modality, ...] = ("audio",)

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return GraniteSpeechPreprocessor(self._checkpoint, self.config())

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        from shared.families.weights import load_half

        config = self.config()
        config.projector_config._attn_implementation = "sdpa"
        module = load_half(
            lambda: _build_tower(config),
            self._checkpoint,
            "encoder",
            PREFIXES,
            device,
            dtype,
            read_apart=COUNTERS,
        )
        return GraniteSpeechTower(module, config)

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        plain = PlainLayout(int(self.config().audio_token_index), PLACEHOLDER, "audio")
        return VariantLayout(plain, SPEECH if self._adapter() is not None else "")

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`. The adapter is read where the checkpoint has one."""
        from shared.families.decoder import load_decoder
        from shared.families.granite_decoder import GraniteDecoder, build_text_model

        adapter = self._adapter()
        adapters = {} if adapter is None else {SPEECH: adapter}
        return load_decoder(
            build_text_model,
            self.config(),
            self._checkpoint,
            PREFIXES,
            device,
            dtype,
            attention_name,
            axes=1,
            make=lambda module, config, axes: GraniteDecoder(module, config, axes, adapters),
        )

    def _adapter(self) -> Adapter | None:
        """The adapter that lies beside the weights.

        Raises:
            InvalidRequestError: config.json says that there is one, and there is none.
        """
        folder = self._checkpoint.folder
        if has_adapter(folder):
            return _in_our_names(adapter_in(folder))
        if self.config().has_lora_adapter:
            raise InvalidRequestError(
                f"{folder / 'config.json'} says has_lora_adapter, and there is no adapter_config.json"
            )
        return None


def _in_our_names(adapter: Adapter) -> Adapter:
    """The adapter with the names of our module's layers; files name them as the whole model does."""
    names = {_our_name(name): stored for name, stored in adapter.names.items()}

    def is_target(layer: str) -> bool:
        rest = layer.removeprefix("model.")
        return any(adapter.is_target(name) for name in (layer, *(part + rest for part in _LANGUAGE_PARTS)))

    return replace(adapter, names=names, is_target=is_target)


def _our_name(name: str) -> str:
    part = next((part for part in _LANGUAGE_PARTS if name.startswith(part)), None)
    return name if part is None else "model." + name.removeprefix(part)


def _build_tower(config: Any) -> nn.Module:
    from torch import nn
    from transformers.models.granite_speech import modeling_granite_speech as modeling

    from shared.families.fixed_norm import fix_batch_norms

    module = nn.Module()
    module.encoder = modeling.GraniteSpeechCTCEncoder(config.encoder_config)
    module.projector = modeling.GraniteSpeechEncoderProjector(config)
    fix_batch_norms(module)
    return module
