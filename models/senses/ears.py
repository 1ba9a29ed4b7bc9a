"""The ears: Qwen2.5-Omni's audio encoder, small, and a quick forward pass over clips of different lengths.

The module is transformers' own; the pass here differs only in that it pads clips as one tensor instead of
cutting out what is real (a test holds the two together). Every clip lies within one window of the encoder.
"""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from models.senses.speech import RATE, Samples
from shared.families.mel import LogMel

BANDS = 80
WINDOW = 640
"""Frames that see one another."""
FRAMES_PER_ROW = 4
LONGEST = 30
"""Seconds that the feature extractor takes."""

WIDTH = 192
_DEPTH = 4
_HEADS = 4
_INNER = 352
_FAR = -1e9


def ears_config() -> Qwen2_5OmniAudioEncoderConfig:
    return Qwen2_5OmniAudioEncoderConfig(
        num_mel_bins=BANDS,
        d_model=WIDTH,
        encoder_layers=_DEPTH,
        encoder_attention_heads=_HEADS,
        encoder_ffn_dim=_INNER,
        n_window=WINDOW // 2,
        max_source_positions=WINDOW // 2,
        output_dim=WIDTH,
    )


def new_ears() -> Qwen2_5OmniAudioEncoder:
    ears = Qwen2_5OmniAudioEncoder(ears_config())
    return ears


def extractor_settings() -> dict[str, object]:
    """What the checkpoint says of its feature extractor."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": BANDS,
        "sampling_rate": RATE,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": LONGEST,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


@cache
def log_mel() -> LogMel:
    settings = extractor_settings()
    del settings["feature_extractor_type"]
    return LogMel(WhisperFeatureExtractor(**settings))


def spectrum(recording: Samples) -> npt.NDArray[np.float32]:
    """(bands, frames), frames cut to whole rows."""
    frames = log_mel().heard(recording)
    return frames[:, : frames.shape[1] // FRAMES_PER_ROW * FRAMES_PER_ROW]


def hear(ears: Qwen2_5OmniAudioEncoder, spectra: torch.Tensor, frame_counts: torch.Tensor) -> torch.Tensor:
    """Rows of every clip.

    Args:
        spectra: (clips, bands, frames), zeros behind each clip's end; at most `WINDOW` frames, a multiple
            of `FRAMES_PER_ROW`.
        frame_counts: (clips,), multiples of `FRAMES_PER_ROW`.

    Returns:
        (clips, frames / FRAMES_PER_ROW, width); what stands behind a clip's end means nothing.
    """
    frames = spectra.shape[2]
    real = torch.arange(frames) < frame_counts[:, None]
    hidden = F.gelu(ears.conv1(spectra)) * real[:, None, :]
    hidden = F.gelu(ears.conv2(hidden)).transpose(1, 2)
    places = ears.positional_embedding.positional_embedding[: hidden.shape[1]]
    hidden = hidden + places.to(hidden.dtype)
    hidden_from = torch.where(real[:, None, None, ::2], 0.0, _FAR)
    for layer in ears.layers:
        hidden = _layer(layer, hidden, hidden_from)
    pairs = hidden.view(len(hidden), -1, 2, hidden.shape[2]).mean(2)
    rows: torch.Tensor = ears.proj(ears.ln_post(pairs))
    return rows


def _layer(layer: Any, hidden: torch.Tensor, hidden_from: torch.Tensor) -> torch.Tensor:
    attention = layer.self_attn
    clips, rows, width = hidden.shape
    normed = layer.self_attn_layer_norm(hidden)
    query, key, value = (
        projection(normed).view(clips, rows, attention.num_heads, -1).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = (query @ key.transpose(2, 3) * attention.scaling).float()
    weights = (scores + hidden_from).softmax(-1).to(value.dtype)
    hidden = hidden + attention.out_proj((weights @ value).transpose(1, 2).reshape(clips, rows, width))
    result: torch.Tensor = hidden + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(hidden))))
    return result
