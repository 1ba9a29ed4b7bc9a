"""When tokens are heard: from the attention of a few heads that follow what is said.

Knows the method of Whisper's authors as transformers has it. Does not know where the weights come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from shared.families.base import Checkpoint
from shared.families.looking import LooksAtItems
from shared.families.time_warping import first_rows

if TYPE_CHECKING:
    import torch

ROW_SECONDS = 0.02
"""Of a recording that one of the encoder's states stands for: two frames of 10 ms."""

_FILTER_WIDTH = 7
"""Where the configuration says none; Whisper's own."""


_EXCHANGES = (
    *((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4)),
)
"""Comparisons after which the fourth of seven numbers is their median (N. Devillard, "Fast median search",
1998)."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """What a checkpoint says about its heads.

    Attributes:
        heads: layer and head of each that follows what is said.
        filter_width: rows that a median is taken of; odd.
    """

    heads: tuple[tuple[int, int], ...]
    filter_width: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: Any) -> Alignment | None:
        """None where the checkpoint names no heads, or makes a mistake about them.

        Args:
            config: the whole model's.
        """
        named = checkpoint.generation_config.get("alignment_heads")
        if not named or mistake_about_heads(checkpoint, config) is not None:
            return None
        return cls(tuple((layer, head) for layer, head in named), _filter_width(config))

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have such heads, rising."""
        return tuple(sorted({layer for layer, _ in self.heads}))

    def token_seconds(self, weights: torch.Tensor) -> list[float]:
        """When each token is heard, in seconds from the recording's beginning, not falling.

        transformers' `_extract_token_timestamps`: weights are normalised over the tokens,
        smoothed by a median over the rows and averaged over the heads; then tokens and rows
        are brought together by dynamic time warping.

        Args:
            weights: float32 (heads, tokens, rows), attention of these heads in their order.
        """
        import torch

        deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, correction=0)
        # A single token deviates from nothing.
        scores = torch.nan_to_num((weights - mean) / deviation)
        smooth = torch.stack([_median(head, self.filter_width) for head in scores])
        rows = first_rows(-smooth.mean(dim=0).cpu().double().numpy())
        return [float(row) * ROW_SECONDS for row in rows]


def mistake_about_heads(checkpoint: Checkpoint, config: Any) -> str | None:
    """What is wrong with the heads that a checkpoint names, for its owner; None where nothing is.

    Args:
        config: the whole model's.
    """
    named = checkpoint.generation_config.get("alignment_heads")
    if not named:
        return None
    if not isinstance(named, list) or not all(_is_pair(pair) for pair in named):
        return "alignment_heads is no list of layers with heads"
    layers, heads = int(config.decoder_layers), int(config.decoder_attention_heads)
    for layer, head in named:
        if not (0 <= layer < layers and 0 <= head < heads):
            return f"alignment_heads has [{layer}, {head}]; there are {layers} layers with {heads} heads"
    width = _filter_width(config)
    return None if width > 0 and width % 2 else f"median_filter_width is {width}, which is not odd"


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


def _filter_width(config: Any) -> int:
    return int(getattr(config, "median_filter_width", None) or _FILTER_WIDTH)


@runtime_checkable
class TellsTimes(LooksAtItems, Protocol):
    """A `LooksAtItems` whose heads tell when tokens are heard."""

    alignment: Alignment | None
    """None where the checkpoint names no heads."""

    def looking_queries(self, layer: int) -> torch.Tensor:
        """What the last step's text looked with: (rows of text, heads, head_dim), scaled.

        Args:
            layer: one of `alignment.layers`.
        """
        ...


def _median(scores: torch.Tensor, width: int) -> torch.Tensor:
    """Of each entry of (tokens, rows) and its neighbours on both sides, mirrored at the ends."""
    from torch.nn import functional

    side = width // 2
    if scores.shape[-1] <= side:
        return scores
    padded = functional.pad(scores[None], (side, side), mode="reflect")[0]
    if width == 7:
        return _median_of_seven(padded)
    return padded.unfold(-1, width, 1).sort()[0][..., side]


def _median_of_seven(padded: torch.Tensor) -> torch.Tensor:
    """The same by comparing shifted copies: a sixth of the time that sorting takes."""
    import torch

    count = padded.shape[-1] - 6
    shifted = [padded[..., first : first + count] for first in range(7)]
    for low, high in _EXCHANGES:
        shifted[low], shifted[high] = (
            torch.minimum(shifted[low], shifted[high]),
            torch.maximum(shifted[low], shifted[high]),
        )
    return shifted[3]
