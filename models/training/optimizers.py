"""What changes the weights: Muon for the matrices inside the blocks, AdamW for everything else.

Knows nothing about batches or schedules beyond the share of the full rate it is told.
"""

import torch
from torch import nn


class Optimizers:
    """The two optimizers as one."""

    def __init__(self, learner: nn.Module, rate: float, matrix_rate: float) -> None:
        """Args:
        learner: what learns; its parameters that need no gradient stay as they are.
        rate: AdamW's.
        matrix_rate: Muon's.
        """
        named = [(name, p) for name, p in learner.named_parameters() if p.requires_grad]
        inner = [parameter for name, parameter in named if _is_inner(name, parameter)]
        chosen = {id(p) for p in inner}
        rest = [p for _, p in named if id(p) not in chosen]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.02},
                    {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
                ],
                lr=rate,
                betas=(0.9, 0.98),
                fused=True,
            ),
            torch.optim.Muon(inner, lr=matrix_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        ]
        self._rates = [rate, matrix_rate]

    def step(self, share: float) -> None:
        """One update at this share of the full rates; clears the gradients."""
        for part, rate in zip(self._parts, self._rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self._parts]

    def load(self, states: list[dict[str, object]]) -> None:
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)


def _is_inner(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and any(part in name for part in (".blocks.", ".layers.", ".merger."))
