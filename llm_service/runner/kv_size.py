"""How many KV blocks fit: from a byte budget on CPU, from what is left of the memory on CUDA.

Knows sizes only. Does not allocate, and does not know who uses the blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from llm_service.engine.messages import EngineSettings
from llm_service.runner.kv_cache import block_byte_count
from shared.errors import InvalidRequestError
from shared.families.base import KvLayout

GIB = 1 << 30

DEFAULT_GIB = 1.0
"""Pool on CPU when no size is given. The memory is taken as blocks are used, not at start."""


def count_blocks(
    layout: KvLayout,
    settings: EngineSettings,
    dtype: torch.dtype,
    device: torch.device,
    profile: Callable[[], None],
) -> int:
    """Blocks that the budget holds.

    Args:
        profile: runs the largest forward that a step may have; called only
            where the device's memory is measured, to see the peak of
            activations beside the weights.

    Raises:
        InvalidRequestError: the budget does not hold one block, or less than
            one sequence of the `max_model_len` that was asked for.
    """
    if settings.kv_cache_gib is None and device.type == "cuda":
        budget = _measure_cuda(settings.gpu_memory_utilization, device, profile)
    else:
        budget = int((settings.kv_cache_gib or DEFAULT_GIB) * GIB)
    size = block_byte_count(layout, settings.block_size, dtype)
    needed = -(-(settings.max_model_len or 1) // settings.block_size)
    fitting = max(budget // size, 0)
    if fitting < needed:
        raise InvalidRequestError(
            f"the KV cache would hold {fitting * settings.block_size} tokens; one sequence of "
            f"{needed * settings.block_size} takes {needed * size / GIB:.3f} GiB: raise --kv-cache-gib "
            "(on a GPU --gpu-memory-utilization) or lower --max-model-len"
        )
    return fitting


def _measure_cuda(utilization: float, device: torch.device, profile: Callable[[], None]) -> int:
    """Bytes that the share `utilization` of the device leaves beside all else and a step's activations."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    profile()
    torch.cuda.synchronize(device)
    activations = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return int(total * utilization) - (total - free) - activations
