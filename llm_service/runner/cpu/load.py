"""Moves a loaded decoder to our own kernels where that is possible.

Knows when it is, and says why when it is not. Does not know how weights are
packed or steps are computed.
"""

from __future__ import annotations

import logging

import torch

from llm_service.engine.messages import EngineSettings
from llm_service.runner.cpu.decoder import CpuDecoder
from llm_service.runner.cpu.looking_decoder import CpuLookingDecoder
from llm_service.runner.cpu.looking_weights import take_looking_weights, why_not
from llm_service.runner.cpu.weights import obstacle, take_weights
from shared.families.base import LanguageModel
from shared.families.decoder import Decoder
from shared.families.whisper_decoder import WhisperTextDecoder
from shared.kernels.start import leave_cores_to, start_team

logger = logging.getLogger(__name__)


def to_cpu_kernels(
    model: LanguageModel, settings: EngineSettings, device: torch.device
) -> CpuDecoder | CpuLookingDecoder | None:
    """The same model on our kernels, its weights moved there; None where torch is to compute."""
    if not isinstance(model, Decoder | WhisperTextDecoder):
        if device.type == "cpu" and settings.kernels == "auto":
            logger.info("torch computes this model: the kernels know no %s", type(model).__name__)
        return None
    team = start_team(device, model.dtype, settings.kernels, settings.threads, settings.shared_cores)
    if team is None:
        return None
    reason = obstacle(model) if isinstance(model, Decoder) else why_not(model)
    if reason is not None:
        logger.info("torch computes this model: %s", reason)
        return None
    leave_cores_to(team)
    most = settings.max_num_batched_tokens
    if isinstance(model, Decoder):
        return CpuDecoder(take_weights(model, team), model.kv_layout, team, most, model.extra_widths)
    weights = take_looking_weights(model, team)
    return CpuLookingDecoder(weights, model.kv_layout, model.item_multiple, team, most, model.alignment)
