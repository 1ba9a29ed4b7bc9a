"""How many KV blocks fit: into the size that was asked for, or into a share of the memory there is.

On the CPU that share is a tenth of what is available, at most 4 GiB, and at
least one sequence of the `max_model_len` that was asked for. On CUDA it is what
`gpu_memory_utilization` leaves beside all else. Knows sizes only. Does not
allocate, and does not know who uses the blocks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from llm_service.engine.messages import EngineSettings
from llm_service.runner.available_memory import available_byte_count
from llm_service.runner.kv_cache import block_byte_count
from shared.errors import InvalidRequestError
from shared.families.base import KvLayout

GIB = 1 << 30

CPU_SHARE = 0.1
"""Share of the available memory for the pool on CPU when no size is given."""

MOST_CPU_BYTES = 4 * GIB
"""Most of it. The memory is taken as blocks are used, not at start."""


def count_blocks(
    layout: KvLayout,
    settings: EngineSettings,
    dtype: torch.dtype,
    device: torch.device,
    profile: Callable[[], int | None],
) -> int:
    """Blocks that the budget holds.

    Args:
        profile: runs the largest forward that a step may have; called only
            where the device's memory is measured, to see the peak of
            activations beside the weights. Returns the bytes that recorded
            steps will keep besides.

    Raises:
        InvalidRequestError: the size that was asked for is more than the memory
            that is available, or the budget does not hold one block, or less than
            one sequence of the `max_model_len` that was asked for.
    """
    size = block_byte_count(layout, settings.block_size, dtype)
    needed = -(-(settings.max_model_len or 1) // settings.block_size)
    budget = _budget(settings, needed * size, device, profile)
    fitting = max(budget // size, 0)
    if fitting < needed:
        raise InvalidRequestError(
            f"the KV cache would hold {fitting * settings.block_size} tokens; one sequence of "
            f"{needed * settings.block_size} takes {needed * size / GIB:.3f} GiB: raise --kv-cache-gib "
            "(on a GPU --gpu-memory-utilization) or lower --max-model-len"
        )
    return fitting


def _budget(
    settings: EngineSettings, least: int, device: torch.device, profile: Callable[[], int | None]
) -> int:
    """Bytes for the pool; `least` holds one sequence."""
    on_cuda = device.type == "cuda"
    if settings.kv_cache_gib is None and on_cuda:
        return _measure_cuda(settings.gpu_memory_utilization, device, profile)
    available = int(torch.cuda.mem_get_info(device)[0]) if on_cuda else available_byte_count()
    if settings.kv_cache_gib is None:
        return min(max(int(available * CPU_SHARE), least), available, max(MOST_CPU_BYTES, least))
    wanted = int(settings.kv_cache_gib * GIB)
    if wanted > available:
        raise InvalidRequestError(
            f"--kv-cache-gib {settings.kv_cache_gib:g} does not fit: "
            f"{available / GIB:.2f} GiB of memory are available on {device}"
        )
    return wanted


def _measure_cuda(utilization: float, device: torch.device, profile: Callable[[], int | None]) -> int:
    """Bytes that the share `utilization` of the device leaves beside all else and a step's activations."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = profile() or 0
    torch.cuda.synchronize(device)
    activations = torch.cuda.max_memory_allocated(device) - before
    # Recordings and their runner hang on each other.
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return int(total * utilization) - (total - free) - activations - kept
