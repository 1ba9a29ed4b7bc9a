"""Moves a loaded decoder to the fused kernels of CUDA where that is possible.

Knows when it is, and says why when it is not. Does not compute.
"""

from __future__ import annotations

import importlib.util
import logging

import torch

from llm_service.runner.attention.context import AttentionBackend
from llm_service.runner.cpu.weights import obstacle
from llm_service.runner.cuda_graphs import can_capture
from shared.families.base import LanguageModel
from shared.families.decoder import Decoder

logger = logging.getLogger(__name__)


def fuse(model: LanguageModel, device: torch.device, backend: AttentionBackend) -> LanguageModel:
    """The same model with few launches per layer, its weights moved there; itself where that cannot be."""
    # A backend that can be recorded reads keys from the cache alone, as the fused decoder wants.
    if not isinstance(model, Decoder) or not can_capture(device, backend):
        return model
    if importlib.util.find_spec("triton") is None:
        return model
    reason = obstacle(model)
    if reason is not None:
        logger.info("the modeling code computes this model: %s", reason)
        return model
    from llm_service.runner.fused_decoder import FusedDecoder

    return FusedDecoder(model)
