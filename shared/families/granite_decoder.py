"""Granite's language model with an adapter for some rows.

Knows the modeling code's parts. Does not know which prompt takes the adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shared.families.adapted_decoder import AdaptedDecoder


class GraniteDecoder(AdaptedDecoder):
    """The LLM half with its weights and its adapter."""

    def __init__(self, module: nn.Module, text_config: Any, *rest: Any) -> None:
        super().__init__(module, text_config, *rest)
        self._logits_scaling = float(text_config.logits_scaling)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) to float32 (tokens, vocabulary).

        Divided as in transformers' Granite, with which the model was trained; its class for
        speech leaves that out from version 5 on, which changes no greedy answer.
        """
        return super().logits(hidden) / self._logits_scaling


def build_text_model(config: Any) -> nn.Module:
    """The text model without its head.

    Raises:
        InvalidRequestError: it is none of Granite's.
    """
    from transformers import AutoModel

    from shared.errors import InvalidRequestError

    if config.model_type != "granite":
        raise InvalidRequestError(f"the language model is a {config.model_type!r}; 'granite' is served")
    module: nn.Module = AutoModel.from_config(config)
    return module
