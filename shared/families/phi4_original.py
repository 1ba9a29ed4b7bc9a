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
    **{
        f".net.{index}.{end}": f".{name}.{end.removeprefix('linear.')}"
        for index, part, name in ((0, "linear.", "gate_up_proj"), (2, "", "down_proj"))
        for end in (f"{part}weight", f"{part}bias")
    },
    **{
        f".self_attn.linear_{old}.{end}": f".self_attn.{new}_proj.{end}"
        for old, new in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
        for end in ("weight", "bias")
    },
    **{
        f"audio_projection.{mode}.{index}.{end}": f"{name}_proj_for_{of}.{end}"
        for mode, of in (("speech", "speech"), ("vision", "vision_speech"))
        for index, name in ((0, "up"), (2, "down"))
        for end in ("weight", "bias")
    },
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
"""What says nothing to transformers' own class, or is said in another way."""

_HEARING: Mapping[str, str] = {
    "attention_dim": "hidden_size",
    "attention_heads": "num_attention_heads",
    "linear_units": "intermediate_size",
    "depthwise_seperable_out_channel": "depthwise_separable_out_channel",
} | {
    name: name
    for name in (
        "activation",
        "chunk_size",
        "conv_activation",
        "conv_glu_type",
        "depthwise_multiplier",
        "dropout_rate",
        "ext_pw_out_channel",
        "input_size",
        "kernel_size",
        "left_chunk",
        "num_blocks",
        "time_reduction",
    )
}
"""Fields of the audio encoder, and transformers' names for them."""


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
        parts = {"vision_config": vision, "audio_config": _audio_config(checkpoint.config)}
        return Phi4MultimodalConfig(**kept | parts)
    # As in `model_config`: wrong fields come as errors of many kinds.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidRequestError(f"{file} is not valid: {type(error).__name__}: {reason}") from error


def _audio_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The audio encoder's fields by transformers' names."""
    stated = config["audio_processor"]["config"]
    fields = {ours: stated[theirs] for theirs, ours in _HEARING.items() if theirs in stated}
    fields["nemo_conv_channels"] = stated["nemo_conv_settings"]["conv_channels"]
    fields["bias_max_distance"] = stated["relative_attention_bias_args"]["t5_bias_max_distance"]
    fields["downsample_rate"] = config["embd_layer"]["audio_embd_layer"]["downsample_rate"]
    return fields | {
        name: value for name, value in (config.get("audio_config") or {}).items() if name == "audio_token_id"
    }


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
