"""The audio encoder of Qwen2.5-Omni: Whisper's, over windows that do not see each other.

Knows how a spectrogram is cut and what is pooled and projected behind the layers. Does not know how
spectrograms are made, nor the language model.

transformers pads every window to the longest and masks what it padded. Here each window runs through the
convolutions by itself, and all rows through the layers together: the same numbers.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shared.families.audio_tower import block_weights, row_count

if TYPE_CHECKING:
    import torch

    from shared.kernels.library import Team

logger = logging.getLogger(__name__)


def pooled_row_count(frame_count: int) -> int:
    """Rows of a recording of so many frames: a convolution halves them, pooling halves what is left."""
    return row_count(frame_count) // 2


class WindowedAudioEncoder:
    """transformers' `Qwen2_5OmniAudioEncoder` with its weights."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._window = 2 * int(module.config.n_window)

    def use_kernels(self, team: Team) -> bool:
        """See `Tower`. The layers; convolutions stay with torch."""
        from shared.kernels.blocks import KernelBlock, Workspace, obstacle

        layers: list[Any] = list(self._module.layers)
        activation = self._module.config.activation_function
        reason = obstacle(layers, activation)
        if reason is not None:
            logger.info("torch computes this tower: %s", reason)
            return False
        workspace = Workspace(team, layers[0].fc1.weight.dtype)
        for layer in layers:
            layer.forward = KernelBlock(block_weights(layer, activation, team), workspace).run_segments
        return True

    def rows(self, spectra: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs recordings through the encoder.

        Args:
            spectra: spectrograms (mels, frames) without padding.

        Returns:
            Of each (`pooled_row_count` of its frames, width of the language model).
        """
        import torch

        with torch.inference_mode():
            windows = [
                [self._started(window) for window in torch.split(spectrum, self._window, dim=1)]
                for spectrum in spectra
            ]
            hidden = self._through([rows for recording in windows for rows in recording])
            counts = [sum(map(len, recording)) for recording in windows]
            return [self._finished(rows) for rows in torch.split(hidden, counts)]

    def _started(self, window: torch.Tensor) -> torch.Tensor:
        """A window (mels, frames) to its rows (rows, width) as they enter the first layer."""
        from torch.nn import functional

        module = self._module
        weight = module.conv1.weight
        hidden = functional.gelu(module.conv1(window.to(weight.device, weight.dtype)[None]))
        hidden = functional.gelu(module.conv2(hidden))[0].transpose(0, 1)
        places: torch.Tensor = module.positional_embedding.positional_embedding[: len(hidden)]
        return hidden + places.to(hidden.dtype)

    def _through(self, windows: Sequence[torch.Tensor]) -> torch.Tensor:
        """All windows through the layers, each attending to itself."""
        import torch

        counts = [len(rows) for rows in windows]
        hidden = torch.cat(list(windows))
        edges = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=hidden.device)
        for layer in self._module.layers:
            output = layer(hidden, cu_seqlens=edges, max_seqlen=max(counts))
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    def _finished(self, rows: torch.Tensor) -> torch.Tensor:
        """Averages pairs, leaves an odd row out, projects."""
        module = self._module
        pairs = rows[: len(rows) // 2 * 2].view(-1, 2, rows.shape[1])
        # Added and halved, as transformers does it: a mean may round otherwise.
        projected: torch.Tensor = module.proj(module.ln_post((pairs[:, 0] + pairs[:, 1]) / 2))
        return projected
