"""Phi-4-multimodal as its authors published it (`model_type` "phi4mm"): configuration and names of tensors.

The adapters stand among the weights there, and every adapted matrix is called its
`base_layer`. The correspondence is that of transformers' conversion script
(convert_phi4_multimodal_weights_to_hf.py). Knows names. Does not know what is computed
with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.checkpoint import tensor_files
from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint
from shared.families.lora_files import Adapter, adapter_among

MODEL_TYPE = "phi4mm"
IMAGE_PROCESSOR = "Phi4MMImageProcessor"

RENAMED: Mapping[str, str] = {
    ".base_layer.weight": ".weight",
    "img_projection.0.weight": "img_projection_up.weight",
    "img_projection.0.bias": "img_projection_up.bias",
    "img_projection.2.weight": "img_projection_down.weight",
    "img_projection.2.bias": "img_projection_down.bias",
    "glb_GN": "global_img_feature_extensor",
    "sub_GN": "sub_img_feature_extensor",
}
"""Ends of tensors' names, and those of transformers' own classes."""

ADAPTERS = ("vision", "speech")

ADAPTER_ENDS = tuple(f".lora_{matrix}.{name}.weight" for matrix in "AB" for name in ADAPTERS)
"""Ends of the names of the adapters' matrices."""

TARGETS = r"model\.layers\.\d+\.((self_attn\.(qkv|o)_proj)|(mlp\.(gate_up|down)_proj))"
"""The layers that have adapters."""

_DROPPED = (
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "audio_processor",
    "auto_map",
    "embd_layer",
    "img_processor",
    "model_type",
    "speech_lora",
    "transformers_version",
    "vision_lora",
)
"""What says nothing to transformers' own class, or is said in another way. The configuration of the ear is
left at its defaults: nothing is read of it."""


def is_original(checkpoint: Checkpoint) -> bool:
    """Says whether a checkpoint is in this layout."""
    return checkpoint.config.get("model_type") == MODEL_TYPE


def native_config(checkpoint: Checkpoint) -> Any:
    """A fresh transformers configuration of a checkpoint in this layout.

    Raises:
        InvalidRequestError: config.json does not describe such a model.
    """
    from transformers import Phi4MultimodalConfig

    file = checkpoint.folder / "config.json"
    try:
        pictures = checkpoint.config["embd_layer"]["image_embd_layer"]
        vision = dict(checkpoint.config.get("vision_config") or {}) | {"crop_size": pictures["crop_size"]}
        kept = {name: value for name, value in checkpoint.config.items() if name not in _DROPPED}
        return Phi4MultimodalConfig(**kept | {"vision_config": vision})
    # As in `model_config`: wrong fields come as errors of many kinds.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidRequestError(f"{file} is not valid: {type(error).__name__}: {reason}") from error


def adapter_of(checkpoint: Checkpoint, name: str) -> Adapter | None:
    """One of the `ADAPTERS` among the checkpoint's tensors; None where it says nothing of it.

    Raises:
        InvalidRequestError: it says something else.
    """
    config = checkpoint.config.get(f"{name}_lora")
    if config is None:
        return None
    if not isinstance(config, dict):
        raise InvalidRequestError(f"{checkpoint.folder / 'config.json'}: {name}_lora is no JSON object")
    return adapter_among(tensor_files(checkpoint), checkpoint.folder, name, config, TARGETS)
