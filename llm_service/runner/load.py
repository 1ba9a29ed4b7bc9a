"""Makes a runner: device, weights, attention backend, KV pool.

Knows the order in which memory is taken. Does not run steps of sequences.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from llm_service.engine.messages import EngineSettings
from llm_service.runner.attention import choose_backend
from llm_service.runner.attention.context import AttentionBackend
from llm_service.runner.attention.mutual import MutualSpans
from llm_service.runner.attention.registration import ATTENTION_NAME, register_attention
from llm_service.runner.cpu.backend import CpuBackend
from llm_service.runner.cpu.load import to_cpu_kernels
from llm_service.runner.cuda_graphs import OTHER_GRAPH_BYTES, can_capture
from llm_service.runner.decode_rows import padded_sizes
from llm_service.runner.fuse import fuse
from llm_service.runner.kv_cache import KvCache
from llm_service.runner.kv_size import count_blocks
from llm_service.runner.model_runner import ModelRunner
from llm_service.runner.rehearsal import largest_block_count, run_largest
from llm_service.runner.row_runs import a_variant
from shared.checkpoint import configured_dtype, find_checkpoint
from shared.errors import InvalidRequestError
from shared.families import load_family
from shared.families.base import Family, LanguageModel
from shared.families.decoder import Decoder
from shared.families.load_progress import reporting_to
from shared.families.looking import LooksAtItems
from shared.torch_tensors import choose_dtype

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
"""Takes a fraction from 0 to 1 and what is being done."""


def load_runner(settings: EngineSettings, progress: Progress) -> ModelRunner:
    """Loads the language model's half of a checkpoint and takes the memory of its KV pool.

    Raises:
        InvalidRequestError: no such checkpoint or device, or a pool too small.
    """
    progress(0.0, "reading the checkpoint")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    checkpoint = find_checkpoint(settings.model, settings.model_parts)
    family = load_family(checkpoint)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device, configured_dtype(checkpoint))
    progress(0.1, "loading language model")
    register_attention()
    with reporting_to(lambda done: progress(0.1 + 0.6 * done, f"{done:.0%} of the weights")):
        maker = _RunnerMaker(family, settings, device, dtype)
    progress(0.8, "taking the KV cache")
    runner = maker.make()
    if settings.enable_prefix_caching and not runner.shares_prefixes:
        logger.info("no prefix caching: this model keeps a state of every sequence beside its blocks")
    if maker.captures:
        runner.capture_graphs(
            lambda done: progress(0.85 + 0.15 * done, f"capturing decode graphs {done:.0%}")
        )
    progress(1.0, f"KV cache of {runner.block_count} blocks")
    return runner


class _RunnerMaker:
    """The parts that a profiling runner and the real one share."""

    def __init__(
        self, family: Family, settings: EngineSettings, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._settings = settings
        self._device = device
        self._dtype = dtype
        self._context_length = family.context_length()
        self._axes = family.prompt_layout().expand([0], []).positions.shape[0]
        self._backend: AttentionBackend = MutualSpans(choose_backend(device, dtype, settings.block_size))
        self._model = family.language_model(device, dtype, ATTENTION_NAME)
        decoder = to_cpu_kernels(self._model, settings, device)
        if decoder is not None:
            self._model, self._backend = decoder, CpuBackend()
        elif settings.kernels == "auto":
            self._model = fuse(self._model, device, self._backend)

    def make(self) -> ModelRunner:
        """Sizes the pool and takes it."""
        block_count = count_blocks(
            self._model.kv_layout, self._settings, self._dtype, self._device, self._profile
        )
        kind = f"attention {self._backend.name} on {self._device} in {self._dtype}"
        logger.info("%s, %d KV blocks of %d slots", kind, block_count, self._settings.block_size)
        return self._make(block_count)

    @property
    def captures(self) -> bool:
        """Whether decoding steps are recorded as CUDA graphs."""
        if self._settings.enforce_eager or self._model.state_shapes or has_experts(self._model):
            return False
        if isinstance(self._model, LooksAtItems):
            # What a sequence sees is read on the host.
            return False
        return can_capture(self._device, self._backend)

    def _profile(self) -> int:
        """Runs the largest step; returns the bytes of the device that recordings keep beside it."""
        runner = self._make(largest_block_count(self._settings))
        run_largest(runner, self._settings, self._axes, a_variant(self._model))
        if not self.captures:
            return 0
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self._device)[0]
        runner.capture_graphs(lambda done: None, most=1)
        taken = free - torch.cuda.mem_get_info(self._device)[0]
        return max(0, taken) + OTHER_GRAPH_BYTES * (len(padded_sizes(self._settings.max_num_seqs)) - 1)

    def _make(self, block_count: int) -> ModelRunner:
        cache = KvCache(
            self._model.kv_layout,
            block_count,
            self._settings.block_size,
            self._dtype,
            self._device,
            with_scratch=self.captures,
        )
        return ModelRunner(
            self._model,
            cache,
            self._backend,
            self._settings,
            axes=self._axes,
            context_length=self._context_length,
        )


def has_experts(model: LanguageModel) -> bool:
    """Whether the modeling code sends tokens to experts. On some GPUs torch reads on the host how many go
    where, which cannot be recorded."""
    if not isinstance(model, Decoder):
        return False
    return any("Experts" in type(module).__name__ for module in model.module.modules())


def choose_device(name: str) -> torch.device:
    """Resolves a `--device` setting; "auto" is CUDA where there is one.

    Raises:
        InvalidRequestError: CUDA was asked for and torch sees none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidRequestError(f"--device {name}, but torch sees no CUDA device here")
    if device.index is not None and device.type == "cuda":
        # Triton launches on the current device.
        torch.cuda.set_device(device)
    return device
