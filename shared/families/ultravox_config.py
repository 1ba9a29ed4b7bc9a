"""What an Ultravox checkpoint says of itself, and which other repositories it is made of.

transformers has no such class. The fields and their defaults are those of the authors'
`UltravoxConfig` (fixie-ai/ultravox, ultravox/model/ultravox_config.py). Knows config.json
and the folders of parts. Reads no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.checkpoint import has_tensors
from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint
from shared.families.checkpoint_parts import find_part
from shared.families.config import model_config

TEXT_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Language models that run as they are behind embeddings."""

DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 4096,
    "stack_factor": 8,
    "projector_act": "swiglu",
    "projector_ln_mid": False,
    "audio_latency_block_size": None,
}
"""`projector_ln_mid` is set from version 0.5 on."""


@dataclass(frozen=True, slots=True)
class UltravoxSource:
    """Where a checkpoint's parts are.

    Attributes:
        checkpoint: with the folders of its parts among `further`.
        text: folder of the language model's repository; None: config.json describes it.
        audio: folder of the encoder's repository, likewise.
    """

    checkpoint: Checkpoint
    text: Path | None
    audio: Path | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> UltravoxSource:
        """Finds the parts that config.json names.

        Raises:
            InvalidRequestError: one is not there.
        """
        text, audio = (_part(checkpoint, name) for name in ("text_model_id", "audio_model_id"))
        further = tuple(folder for folder in (audio, text) if folder is not None and has_tensors(folder))
        return cls(replace(checkpoint, further=further), text, audio)

    def config(self) -> Any:
        """A fresh configuration in transformers' form, with `text_config` and `audio_config`.

        Raises:
            InvalidRequestError: a field that is not served.
        """
        from transformers import PretrainedConfig

        own = self.checkpoint.config
        config = PretrainedConfig()
        for name, default in DEFAULTS.items():
            setattr(config, name, own.get(name, default))
        config.text_config = self._inner("text_config", self.text, "llama")
        config.audio_config = self._inner("audio_config", self.audio, "whisper")
        config.tie_word_embeddings = bool(config.text_config.tie_word_embeddings)
        self._check(config)
        return config

    def extractor_folder(self) -> Path | None:
        """The folder with the settings of spectrograms; None where no part has any."""
        folders = [self.checkpoint.folder, *([self.audio] if self.audio is not None else [])]
        names = ("preprocessor_config.json", "processor_config.json")
        return next(
            (folder for folder in folders if any((folder / name).is_file() for name in names)),
            None,
        )

    def _inner(self, name: str, part: Path | None, default_type: str) -> Any:
        from transformers import AutoConfig

        if part is not None:
            return model_config(Checkpoint(part, {}))
        fields = dict(self.checkpoint.config.get(name) or {})
        try:
            return AutoConfig.for_model(fields.pop("model_type", default_type), **fields)
        # As in `model_config`: wrong fields come as errors of many kinds.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            file = self.checkpoint.folder / "config.json"
            raise InvalidRequestError(f"{file}: {name} is not valid: {reason}") from error

    def _check(self, config: Any) -> None:
        file = self.checkpoint.folder / "config.json"
        found = {"text": config.text_config.model_type, "audio": config.audio_config.model_type}
        if found["text"] not in TEXT_TYPES:
            raise InvalidRequestError(
                f"{file}: the language model is a {found['text']!r}; {', '.join(TEXT_TYPES)} are served"
            )
        if found["audio"] != "whisper":
            raise InvalidRequestError(f"{file}: the encoder is a {found['audio']!r}; 'whisper' is served")
        if self.checkpoint.config.get("num_projector_layers"):
            raise InvalidRequestError(f"{file}: projectors with layers of attention are not served")
        if not isinstance(config.stack_factor, int) or config.stack_factor < 1:
            raise InvalidRequestError(f"{file}: stack_factor is {config.stack_factor!r}; it is at least 1")


def _part(checkpoint: Checkpoint, field: str) -> Path | None:
    name = checkpoint.config.get(field)
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise InvalidRequestError(
            f"{checkpoint.folder / 'config.json'}: {field} is {name!r}, which is no name"
        )
    return find_part(checkpoint, name, field)
