"""Phi-4-multimodal: pictures in tiles of their own resolution, recordings (`phi4_speech.py`), adapters for
prompts with either, and rotary frequencies that depend on a sequence's length.

Takes checkpoints in transformers' layout, with adapters in folders, and as the authors
published them (`phi4_original.py`). Knows both halves of the family, each made apart.
Does not know who runs the halves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families.base import (
    MAIN_TENSOR,
    AudioClip,
    EncodedItem,
    Features,
    Grid,
    LanguageModel,
    MediaInfo,
    Modality,
    Preprocessor,
    PromptLayout,
    RawTensor,
    Tower,
)
from shared.families.defaults import CommonFamily, PicturesAlone
from shared.families.dynamic_hd import Tiling
from shared.families.embeddings import check_fields, check_rows
from shared.families.image_processor import check_shape, read_image_settings
from shared.families.lora_files import Adapter, adapter_in
from shared.families.phi4_layout import Phi4Layout
from shared.families.phi4_original import (
    ADAPTER_ENDS,
    IMAGE_PROCESSOR,
    RENAMED,
    adapter_of,
    is_original,
    native_config,
)
from shared.families.phi4_speech import SECONDS_IN_ONE_GO, SPEECH, VISION, Phi4Ears
from shared.families.phi4_tower import PICTURE, Phi4Tower, build_towers
from shared.families.video_settings import read_recipe

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from shared.families.base import Checkpoint
    from shared.families.weights import Prefixes


ROWS = "image_embeds"
MOST_TILES = ("dynamic_hd", "num_crops")
"""The setting by transformers' name and by vLLM's."""

IMAGE_TEXT = "<|endoftext10|>"
"""The placeholder where the tokenizer's configuration says nothing of it, as on the hub."""

SOUND_ROWS = "audio_embeds"
AUDIO_TEXT = "<|endoftext11|>"
"""The same for recordings."""

ADAPTER_FOLDERS: Mapping[str, str] = {VISION: "vision-lora", SPEECH: "speech-lora"}
"""Folders of a checkpoint that hold adapters, as the hub's does, by the variant that they make."""

IMAGE_DEFAULTS: Mapping[str, Any] = {
    "size": {"height": 448, "width": 448},
    "patch_size": 14,
    "dynamic_hd": 36,
    "resample": 3,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
"""Those of transformers' Phi4MultimodalImageProcessor."""

PREFIXES: Prefixes = {
    "model.embed_tokens_extend.": ("encoder", ""),
    "model.": ("language", "model."),
    "lm_head.": ("language", "lm_head."),
}


class Phi4Preprocessor(PicturesAlone):
    """Pictures, recordings and precomputed embeddings; see `Hears`."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        self._ears = Phi4Ears(checkpoint, config)
        self.sampling_rate = self._ears.sampling_rate
        self.most_samples = SECONDS_IN_ONE_GO * self.sampling_rate
        settings = image_settings(checkpoint)
        self._tiling = read_tiling(checkpoint, config, settings)
        self._most = int(settings["dynamic_hd"])
        self._hidden_size = int(config.hidden_size)
        # For its refusals; the tower reads it for itself.
        read_recipe(settings)

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """See `Preprocessor`. The picture stays as it is; the tower resizes it.

        Settings: `dynamic_hd`, or `num_crops`, the most tiles, up to the checkpoint's own; of
        both the smaller, as a server may have set one and a request the other.
        """
        most = self._most_tiles(settings)
        check_shape(picture)
        size = (picture.height, picture.width)
        tiles = self._tiling.count_tiles(size, most)
        rows = self._tiling.row_count(self._tiling.place(size, tiles).cells)
        info = MediaInfo(rows, grids=(Grid(1, *tiles),), image_size=size)
        cost = (1 + tiles[0] * tiles[1]) * self._tiling.patches**2
        return Features(info, {PICTURE: np.asarray(picture)}, cost)

    def preprocess_audio(self, clip: AudioClip, settings: Mapping[str, Any]) -> Features:
        """See `Hears`; see `Phi4Ears`."""
        return self._ears.features(clip, settings)

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """See `Preprocessor`. Field: `image_embeds` or `audio_embeds` (rows, hidden)."""
        if modality == "audio":
            check_fields(fields, required=(SOUND_ROWS,), optional=())
            count = check_rows(SOUND_ROWS, fields[SOUND_ROWS], self._hidden_size)
            return EncodedItem(MediaInfo(count), {MAIN_TENSOR: fields[SOUND_ROWS]})
        check_fields(fields, required=(ROWS,), optional=())
        rows = check_rows(ROWS, fields[ROWS], self._hidden_size)
        least, most = self._tiling.row_count((1, 1)), self._tiling.most_rows(self._most)
        if not least <= rows <= most:
            raise BadEmbeddingsError(
                f"{ROWS} has {rows} rows; a picture of this model has {least} to {most}", param=ROWS
            )
        return EncodedItem(MediaInfo(rows), {MAIN_TENSOR: fields[ROWS]})

    def _most_tiles(self, settings: Mapping[str, Any]) -> int:
        """The most tiles for a picture.

        Raises:
            InvalidRequestError: a setting is unknown or out of bounds.
        """
        for name, value in settings.items():
            if name not in MOST_TILES:
                raise InvalidRequestError(
                    f"unknown processor setting {name!r}; there are {' and '.join(MOST_TILES)}"
                )
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not 1 <= value <= self._most:
                raise InvalidRequestError(f"{name} is a whole number from 1 to {self._most}")
        return min([self._most, *map(int, settings.values())])


def image_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of a checkpoint's image processor.

    Raises:
        InvalidRequestError: it has none, or others than this family's.
    """
    settings = dict(IMAGE_DEFAULTS) | read_image_settings(checkpoint)
    kind = str(settings.get("image_processor_type", "")).removesuffix("Fast")
    if kind not in ("Phi4MultimodalImageProcessor", IMAGE_PROCESSOR):
        raise InvalidRequestError(
            f"{checkpoint.folder}: image_processor_type is {kind!r}, which is not Phi-4's"
        )
    most = settings["dynamic_hd"]
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise InvalidRequestError(f"{checkpoint.folder}: dynamic_hd is {most!r}; it is at least 1")
    return settings


def read_tiling(checkpoint: Checkpoint, config: Any, settings: Mapping[str, Any]) -> Tiling:
    """The tiles that tower and processor agree on.

    Raises:
        InvalidRequestError: they do not.
    """
    vision, size = config.vision_config, settings["size"]
    tower = {vision.image_size, vision.crop_size}
    made = {size.get("height"), size.get("width")} if isinstance(size, Mapping) else {size}
    if made != tower or len(tower) > 1:
        raise InvalidRequestError(
            f"{checkpoint.folder}: the image processor makes tiles of {size}, the tower takes"
            f" {vision.image_size} pixels"
        )
    if settings["patch_size"] != vision.patch_size:
        raise InvalidRequestError(
            f"{checkpoint.folder}: the image processor has patches of {settings['patch_size']!r} pixels,"
            f" the tower of {vision.patch_size}"
        )
    return Tiling(int(vision.image_size), int(vision.patch_size))


class Phi4MultimodalFamily(CommonFamily):
    """Factory of the parts of one Phi-4-multimodal checkpoint; see `Family`."""

    model_type = "phi4_multimodal"
    modalities: tuple[Modality, ...] = ("image", "audio")

    def config(self) -> Any:
        """See `Family`."""
        original = is_original(self._checkpoint)
        return native_config(self._checkpoint) if original else super().config()

    def preprocessor(self) -> Preprocessor:
        """See `Family`."""
        return Phi4Preprocessor(self._checkpoint, self.config())

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """See `Family`."""
        from shared.families.weights import load_half

        config, settings = self.config(), image_settings(self._checkpoint)
        tiling = read_tiling(self._checkpoint, config, settings)
        config.vision_config._attn_implementation = config.audio_config._attn_implementation = "sdpa"
        module = load_half(
            lambda: build_towers(config),
            self._checkpoint,
            "encoder",
            PREFIXES,
            device,
            dtype,
            renamed=RENAMED,
            read_apart=ADAPTER_ENDS,
        )
        return Phi4Tower(module, self.hidden_size(), tiling, read_recipe(settings))

    def prompt_layout(self) -> PromptLayout:
        """See `Family`."""
        own = self._checkpoint.config
        image_id = int((own.get("vision_config") or {}).get("image_token_id", 200010))
        audio_id = int((own.get("audio_config") or {}).get("audio_token_id", 200011))
        texts: dict[Modality, str] = {
            "image": self._text_of("image_token", image_id, IMAGE_TEXT),
            "audio": self._text_of("audio_token", audio_id, AUDIO_TEXT),
        }
        return Phi4Layout({"image": image_id, "audio": audio_id}, texts, frozenset(self._adapters()))

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """See `Family`. Adapters are read where the checkpoint has them."""
        from shared.families.decoder import load_decoder
        from shared.families.phi4_decoder import Phi4Decoder, build_text_model

        adapters = self._adapters()
        return load_decoder(
            build_text_model,
            self.config(),
            self._checkpoint,
            PREFIXES,
            device,
            dtype,
            attention_name,
            axes=1,
            make=lambda module, config, axes: Phi4Decoder(module, config, axes, adapters),
            renamed=RENAMED,
            read_apart=ADAPTER_ENDS,
        )

    def _adapters(self) -> dict[str, Adapter]:
        """Those that the checkpoint has, by the variant that each makes.

        Raises:
            InvalidRequestError: a folder of one is there, and it is not.
        """
        if is_original(self._checkpoint):
            among = {name: adapter_of(self._checkpoint, name) for name in ADAPTER_FOLDERS}
            return {name: adapter for name, adapter in among.items() if adapter is not None}
        folders = {name: self._checkpoint.folder / folder for name, folder in ADAPTER_FOLDERS.items()}
        return {name: adapter_in(folder) for name, folder in folders.items() if folder.is_dir()}

    def _text_of(self, name: str, token_id: int, default: str) -> str:
        """A placeholder's text, as the tokenizer's configuration names it."""
        file = self._checkpoint.folder / "tokenizer_config.json"
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            settings = {}
        named = settings.get("extra_special_tokens")
        if isinstance(named, dict) and name in named:
            return str(named[name])
        added = settings.get("added_tokens_decoder", {}).get(str(token_id), {})
        return str(settings.get(name) or added.get("content", default))
