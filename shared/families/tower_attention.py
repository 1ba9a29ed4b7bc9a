"""Encoder towers on CUDA: attention of all pictures of a batch, or all windows of them, in one call.

transformers cuts a batch by picture and calls attention once for each, unless
the attention's name says "flash": then the modeling code hands over where each
segment begins. Knows this convention, and which kernel there is. On the CPU
nothing changes: there a call per picture costs least.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

TOWER_ATTENTION = "percept_flash_segments"
"""Contains "flash" on purpose; see above."""

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, float], torch.Tensor]
"""Takes (rows, heads, head_dim) query, key and value, the segments' starts, the longest, the scaling."""


class PatchProduct(nn.Module):
    """A patch embedding as the matrix product that it is.

    Kernel and stride are the patch itself, so every output is one row times the
    weight; convolution libraries may take a far slower way.
    """

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(patches, channels, time, height, width) to (patches, features)."""
        return functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


def prepare_tower(module: nn.Module, config: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Fits a built Qwen tower to its device; on the CPU it stays as it is.

    Args:
        module: with its weights.
        config: see `use_segments`.
    """
    use_segments(config, device, dtype)
    if device.type == "cuda":
        if device.index is not None:
            # Triton launches on the thread's current device; the tower has a thread of its own.
            torch.cuda.set_device(device)
        multiply_patches(module)


def multiply_patches(module: Any) -> None:
    """Puts a `PatchProduct` in the place of the tower's convolution."""
    convolution = module.patch_embed.proj
    assert convolution.kernel_size == convolution.stride, "patches overlap"
    module.patch_embed.proj = PatchProduct(convolution)


def use_segments(config: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Makes a tower's modules call one kernel per layer, where there is one.

    Args:
        config: the vision configuration that the built modules hold; its
            choice of attention is read at every call.

    Returns:
        Whether there is such a kernel for this device.
    """
    kernel = choose_kernel(device, dtype)
    if kernel is None:
        return False
    register(kernel)
    # Only now: a name with "flash" in it, in a module that is built, is looked for as a package.
    config._attn_implementation = TOWER_ATTENTION
    return True


def choose_kernel(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """`flash_attn` where it is installed, else our own; None where neither can run."""
    if device.type != "cuda":
        return None
    half = dtype in (torch.float16, torch.bfloat16)
    if half and importlib.util.find_spec("flash_attn") is not None:
        return _flash
    if importlib.util.find_spec("triton") is not None:
        from shared.families.triton_varlen import attend_within_segments

        return attend_within_segments
    return None


def register(kernel: Kernel) -> None:
    """Makes `TOWER_ATTENTION` known to transformers. May be called again."""
    from transformers import AttentionInterface

    AttentionInterface.register(TOWER_ATTENTION, segment_attention(kernel))


def segment_attention(kernel: Kernel) -> Callable[..., tuple[torch.Tensor, None]]:
    """The function that modeling code calls: (1, heads, rows, head_dim) to (1, rows, heads, head_dim)."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        cu_seq_lens_q: torch.Tensor,
        max_length_q: int | torch.Tensor,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        assert attention_mask is None, "the modeling code built a mask for segments"
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = kernel(query, key, value, cu_seq_lens_q.to(torch.int32), int(max_length_q), factor)
        return output.unsqueeze(0), None

    return attend


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scaling: float,
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    output: torch.Tensor = flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=starts,
        cu_seqlens_k=starts,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scaling,
    )
    return output
