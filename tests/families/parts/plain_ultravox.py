"""Ultravox written out plainly over transformers' Whisper and Llama: what the family is compared with.

As the authors' code does it: recordings are cut and padded, the encoder gets a mask, and the
language model generates behind embeddings. Imports nothing of Percept. Runs where torch is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.whisper.modeling_whisper import WhisperEncoder

PLACEHOLDER = "<|audio|>"


class PlainUltravox(nn.Module):
    """The whole model, its tensors named as in the hub's files."""

    def __init__(self, fields: Mapping[str, Any], text: LlamaConfig, audio: WhisperConfig) -> None:
        super().__init__()
        audio._attn_implementation = "eager"
        self.stack, self.block = fields["stack_factor"], fields.get("audio_latency_block_size")
        self.context = 2 * audio.max_source_positions
        self.audio_tower = WhisperEncoder(audio)
        self.multi_modal_projector = nn.ModuleDict(
            {
                "ln_pre": LlamaRMSNorm(audio.d_model * self.stack, 1e-6),
                "linear_1": nn.Linear(audio.d_model * self.stack, fields["hidden_size"], bias=False),
                "linear_2": nn.Linear(fields["hidden_size"] // 2, text.hidden_size, bias=False),
            }
        )
        self.norm_in_the_middle = bool(fields.get("projector_ln_mid"))
        if self.norm_in_the_middle:
            self.multi_modal_projector["ln_mid"] = LlamaRMSNorm(fields["hidden_size"] // 2, 1e-6)
        else:
            self.multi_modal_projector["ln_post"] = LlamaRMSNorm(text.hidden_size, 1e-6)
        self.language_model = LlamaForCausalLM(text)

    def get_output_embeddings(self) -> Any:
        """The language model's."""
        return self.language_model.get_output_embeddings()

    def hear(self, pieces: torch.Tensor, frame_counts: Sequence[int]) -> torch.Tensor:
        """Pieces (pieces, mels, frames), of which so many frames are real, to rows (rows, hidden)."""
        states = self.encode(pieces, frame_counts)
        rows = []
        for piece, count in zip(states, frame_counts, strict=True):
            padded = functional.pad(piece, (0, 0, 0, -len(piece) % self.stack))
            stacked = padded.reshape(-1, self.stack * piece.shape[-1])
            rows.append(self.project(stacked)[: math.ceil(count / (2 * self.stack))])
        return torch.cat(rows)

    def encode(self, pieces: torch.Tensor, frame_counts: Sequence[int]) -> torch.Tensor:
        """The encoder with what is padded masked, (pieces, rows, width)."""
        tower = self.audio_tower
        hidden = functional.gelu(tower.conv2(functional.gelu(tower.conv1(pieces)))).transpose(1, 2)
        hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
        length = hidden.shape[1]
        real = (torch.tensor(frame_counts) - 1) // 2 + 1
        shown = (torch.arange(length)[None] < real[:, None])[:, None, None].expand(-1, 1, length, length)
        if self.block:
            blocks = torch.arange(length) // self.block
            shown = shown & (blocks[None] <= blocks[:, None])
        mask = torch.zeros(shown.shape).masked_fill(~shown, torch.finfo(torch.float32).min)
        for layer in tower.layers:
            hidden = layer(hidden, mask)
        return tower.layer_norm(hidden)

    def project(self, stacked: torch.Tensor) -> torch.Tensor:
        """(rows, stacked width) to (rows, hidden)."""
        parts = self.multi_modal_projector
        values, gates = parts["linear_1"](parts["ln_pre"](stacked)).chunk(2, dim=-1)
        middle = values * functional.silu(gates)
        if self.norm_in_the_middle:
            return parts["linear_2"](parts["ln_mid"](middle))
        return parts["ln_post"](parts["linear_2"](middle))


class PlainProcessor:
    """Spectrograms of recordings, and the prompt around them."""

    def __init__(self, tokenizer: Any, extractor: Any, context: int, stack: int) -> None:
        self.tokenizer = tokenizer
        self.extractor = extractor
        self.context, self.stack = context, stack

    def apply_chat_template(self, messages: list[dict[str, Any]], **arguments: Any) -> str:
        """The conversation as text; the template takes plain text."""
        turns = [message | {"content": plain_text(message["content"])} for message in messages]
        return str(self.tokenizer.apply_chat_template(turns, **arguments))

    def spectrum(self, samples: Any) -> torch.Tensor:
        """(mels, frames) of one recording."""
        hop = self.extractor.hop_length
        samples = np.pad(samples, (0, max(0, 2 * hop - len(samples))))
        made = self.extractor(
            [samples],
            sampling_rate=self.extractor.sampling_rate,
            padding="longest",
            pad_to_multiple_of=hop,
            truncation=False,
            return_tensors="pt",
        )
        return made["input_features"][0]

    def pieces(self, spectrum: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """The recording cut, later pieces padded to the encoder's context; and how much of each is real."""
        pieces = list(torch.split(spectrum, self.context, dim=1))
        counts = [piece.shape[1] for piece in pieces]
        if len(pieces) > 1:
            pieces = [functional.pad(piece, (0, self.context - piece.shape[1])) for piece in pieces]
        return torch.stack(pieces), counts

    def prompt(self, text: str, row_counts: Sequence[int]) -> list[int]:
        """Tokens; the end token stands once for each row."""
        first, *others = (
            self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(PLACEHOLDER)
        )
        for count, part in zip(row_counts, others, strict=True):
            first = [*first, *[self.tokenizer.eos_token_id] * count, *part]
        return first


def plain_text(content: Any) -> str:
    """A message's parts as one text."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else PLACEHOLDER for part in content)


def make_inputs(
    processor: PlainProcessor,
    text: str,
    pictures: list[Any],
    videos: list[Any],
    arguments: Mapping[str, Any],
    recordings: Sequence[Any] = (),
) -> dict[str, Any]:
    """Each recording by itself: what it becomes does not hang on what stands beside it."""
    spectra = [processor.spectrum(samples) for samples in recordings]
    cut = [processor.pieces(spectrum) for spectrum in spectra]
    rows = [sum(math.ceil(count / (2 * processor.stack)) for count in counts) for _, counts in cut]
    ids = processor.prompt(text, rows)
    places, at = [], 0
    for count, part in zip(rows, text.split(PLACEHOLDER), strict=False):
        at += len(processor.tokenizer(part, add_special_tokens=False)["input_ids"])
        places.append(slice(at, at + count))
        at += count
    found = {"input_ids": torch.tensor([ids]), "cut": cut, "places": places}
    return found | ({"audio_values": spectra[0]} if spectra else {})


def audio_features(model: PlainUltravox, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Rows of each recording."""
    return [model.hear(*one) for one in inputs["cut"]]


def generate(model: PlainUltravox, inputs: Mapping[str, Any], count: int) -> list[int]:
    """Greedy tokens behind embeddings."""
    embeds = model.language_model.get_input_embeddings()(inputs["input_ids"]).clone()
    for place, rows in zip(inputs["places"], audio_features(model, inputs), strict=True):
        embeds[0, place] = rows
    output = model.language_model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
    )
    return [int(token) for token in output[0]]


def load_model(folder: Path) -> PlainUltravox:
    """A checkpoint that holds all."""
    from safetensors.torch import load_file

    fields = json.loads((folder / "config.json").read_text())
    text, audio = LlamaConfig(**fields["text_config"]), WhisperConfig(**fields["audio_config"])
    model = PlainUltravox(fields, text, audio)
    stored: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    if text.tie_word_embeddings:
        stored["language_model.lm_head.weight"] = stored["language_model.model.embed_tokens.weight"]
    model.load_state_dict(stored)
    return model


def load_processor(folder: Path) -> PlainProcessor:
    """The checkpoint's tokenizer and extractor."""
    from transformers import AutoTokenizer, WhisperFeatureExtractor

    fields = json.loads((folder / "config.json").read_text())
    context = 2 * fields["audio_config"]["max_source_positions"]
    return PlainProcessor(
        AutoTokenizer.from_pretrained(folder),
        WhisperFeatureExtractor.from_pretrained(folder),
        context,
        fields["stack_factor"],
    )
