"""The language model alone, and deeper: layers that at first change nothing between those there are.

Knows how a step's loss comes about. Knows nothing about towers.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

TALKS = 64
"""Numbers that a segment's talks have, of which the first is seen by the whole segment."""
_FAR = -1e9
_WHERE_BEFORE_END, _APART_BEFORE_END = -4, -2
"""The layers, counted from the last, behind which tokens are to know what they are hinted at."""
HINT_WEIGHT = 0.5


class LanguageModel(nn.Module):
    """The language model of a thinker, which learns from rows that are given."""

    def __init__(self, thinker: Any) -> None:
        super().__init__()
        self.language = thinker.model.language_model
        width: int = self.language.config.hidden_size
        self.where, self.apart = nn.Linear(width, 2), nn.Linear(width, 2)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Next-token logits at the batch's places, and what its hinted tokens know; a row for each."""
        language = self.language
        words = language.embed_tokens(batch["tokens"])
        hidden = torch.where(batch["is_given"][..., None], batch["given"].to(words.dtype), words)
        turns = language.rotary_emb(hidden, batch["positions"])
        hidden_from = hiding(batch["talks"])
        depths = []
        for layer in language.layers:
            hidden = _first(layer(hidden, attention_mask=hidden_from, position_embeddings=turns))
            depths.append(hidden)
        chosen = hidden.flatten(0, 1)[batch["places"]]
        logits = F.linear(language.norm(chosen), language.embed_tokens.weight)
        where = depths[_WHERE_BEFORE_END].flatten(0, 1)[batch["where_places"]]
        apart = depths[_APART_BEFORE_END].flatten(0, 1)[batch["apart_places"]]
        return logits, self.where(_normal(where)), self.apart(_normal(apart))


def _normal(hidden: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:])


def _first(output: Any) -> torch.Tensor:
    result: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return result


def hiding(talks: torch.Tensor) -> torch.Tensor:
    """What is added to attention's scores: no token sees a later one, another segment or another talk."""
    length = talks.shape[1]
    query, key = talks[:, :, None], talks[:, None, :]
    talk = (key == query) | ((key // TALKS == query // TALKS) & (key % TALKS == 0))
    seen = talk & torch.ones((length, length), dtype=torch.bool).tril()
    return torch.zeros(()).masked_fill(~seen, _FAR)[:, None]


def losses(
    known: tuple[torch.Tensor, torch.Tensor, torch.Tensor], batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted mean over the answers' tokens, and how far off the hinted tokens are in the mean."""
    logits, where, apart = known
    each = F.cross_entropy(logits.float(), batch["labels"], reduction="none")
    spoken = (each * batch["weights"]).sum() / batch["weights"].sum().clamp(min=1.0)
    return spoken, _off(where, batch, "where"), _off(apart, batch, "apart")


def _off(known: torch.Tensor, batch: dict[str, torch.Tensor], hint: str) -> torch.Tensor:
    hinted = (batch[f"{hint}_places"] >= 0).float()
    off = (known.float() - batch[hint]).abs().sum(-1)
    return (off * hinted).sum() / hinted.sum().clamp(min=1.0)


def open_thinker(folder: Path) -> Any:
    """The checkpoint in fp32."""
    thinker: Any = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return thinker


def deepen(thinker: Any, behind: tuple[int, ...]) -> None:
    """Puts a new layer behind each of the named ones; the model answers as before, to the number."""
    layers = thinker.model.language_model.layers
    for index in sorted(behind, reverse=True):
        new = copy.deepcopy(layers[index])
        nn.init.zeros_(new.self_attn.o_proj.weight)
        nn.init.zeros_(new.mlp.down_proj.weight)
        layers.insert(index + 1, new)
    for number, layer in enumerate(layers):
        layer.self_attn.layer_idx = number
    text = thinker.config.text_config
    text.layer_types = [text.layer_types[0]] * len(layers)
    text.num_hidden_layers = len(layers)
