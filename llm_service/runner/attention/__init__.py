"""Paged attention: one file per backend, one name in the modeling code, one rule to choose."""

from __future__ import annotations

import importlib.util
import logging

import torch

from llm_service.runner.attention.context import AttentionBackend
from llm_service.runner.attention.sdpa import SdpaBackend

logger = logging.getLogger(__name__)


def choose_backend(device: torch.device, dtype: torch.dtype, block_size: int) -> AttentionBackend:
    """The fastest backend that can serve this device, dtype and block size."""
    if device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        from llm_service.runner.attention.flash import BLOCK_MULTIPLE, DATA_TYPES, FlashBackend

        if dtype in DATA_TYPES and block_size % BLOCK_MULTIPLE == 0:
            return FlashBackend()
        logger.warning(
            "flash_attn needs a half type and --block-size a multiple of %d: not used", BLOCK_MULTIPLE
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from llm_service.runner.attention.triton_paged import TritonBackend

        return TritonBackend()
    return SdpaBackend()
