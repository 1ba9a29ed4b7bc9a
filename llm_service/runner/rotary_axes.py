"""Which axis of its position each frequency of a head takes.

Knows the modeling code's two orders of M-RoPE's sections. Does not compute angles.
"""

from __future__ import annotations

from typing import Any

import torch

from shared.families.decoder import Decoder

_INTERLEAVED = frozenset({"Qwen3VLTextModel"})
"""Models whose frequencies take time, height and width by turns."""


def rotary_axes(decoder: Decoder) -> torch.Tensor:
    """int64 (head_dim / 2,) on the device of the frequencies; zeros where positions have one axis.

    Sections of M-RoPE are runs of frequencies that take time, height and width in turn. Where single
    frequencies do, those that height and width leave are time's.
    """
    model: Any = decoder.module.model
    frequencies = model.rotary_emb.inv_freq
    axes = torch.zeros(len(frequencies), dtype=torch.int64, device=frequencies.device)
    if decoder.axes == 1:
        return axes
    sections = model.rotary_emb.mrope_section
    if type(model).__name__ in _INTERLEAVED:
        for axis in (1, 2):
            axes[axis : 3 * sections[axis] : 3] = axis
        return axes
    assert sum(sections) == len(axes), "the sections of M-RoPE do not cover the head"
    counts = torch.tensor(sections, device=axes.device)
    return (torch.arange(len(sections), device=axes.device) % decoder.axes).repeat_interleave(counts)
