"""Moves a loaded decoder to our own kernels where that is possible.

Knows when it is, and says why when it is not. Does not know how weights are
packed or steps are computed.
"""

from __future__ import annotations

import logging

import torch

from llm_service.engine.messages import EngineSettings
from llm_service.runner.cpu.decoder import CpuDecoder
from llm_service.runner.cpu.weights import obstacle, take_weights
from shared.families.base import LanguageModel
from shared.families.decoder import Decoder
from shared.kernels.build import BuildError, built_library
from shared.kernels.library import Library

logger = logging.getLogger(__name__)

_DEFAULT_THREADS = torch.get_num_threads()


def to_cpu_kernels(model: LanguageModel, settings: EngineSettings, device: torch.device) -> CpuDecoder | None:
    """The same model on our kernels, its weights moved there; None where torch is to compute."""
    if device.type != "cpu" or settings.kernels == "torch":
        return None
    reason = obstacle(model) if isinstance(model, Decoder) else f"{type(model).__name__} is none of ours"
    if reason is not None:
        logger.info("torch computes this model: %s", reason)
        return None
    assert isinstance(model, Decoder)
    try:
        library = Library(built_library())
    except (BuildError, OSError) as error:
        logger.warning("torch computes, which is slower: %s", error)
        return None
    team = library.make_team(settings.threads or _DEFAULT_THREADS)
    # Torch's threads wait for work by spinning, on the cores that the team needs.
    torch.set_num_threads(1)
    return CpuDecoder(take_weights(model, team), model.kv_layout, team, settings.max_num_batched_tokens)
