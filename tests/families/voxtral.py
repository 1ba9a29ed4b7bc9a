"""Voxtral, tiny: windows of four seconds in 40 bands, Mistral's marks around turns and recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase, OracleOverrides
from tests.families.parts.names import newer_name, oddly_saved_name
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_qwen_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]"
    "{% elif message['role'] == 'user' %}[INST]{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}[BEGIN_AUDIO][AUDIO]"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'system' %}[/SYSTEM_PROMPT]"
    "{% elif message['role'] == 'user' %}[/INST]{% else %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
MARKS = (
    "<|endoftext|>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AUDIO]",
    "[BEGIN_AUDIO]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
)
SECONDS, BANDS, STACK = 4, 40, 4
SAMPLES = SECONDS * 16_000


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB", tie: bool = False) -> Path:
    """Writes the checkpoint; `tie` shares the input embedding with the output layer."""
    from transformers import VoxtralConfig

    tokenizer = build_qwen_tokenizer(special_tokens=MARKS, end="</s>")
    tokenizer.bos_token = "<s>"
    config = VoxtralConfig(
        audio_config={
            "model_type": "voxtral_encoder",
            "num_mel_bins": BANDS,
            "hidden_size": 32,
            "intermediate_size": 32 * STACK,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_source_positions": SECONDS * 50,
        },
        text_config=text_config(
            len(tokenizer), tokenizer, model_type="llama", head_dim=16, tie_word_embeddings=tie
        ),
        audio_token_id=tokenizer.convert_tokens_to_ids("[AUDIO]"),
    )
    return save_checkpoint(
        folder,
        config,
        tokenizer,
        TEMPLATE,
        {
            "preprocessor_config.json": {
                "feature_extractor_type": "WhisperFeatureExtractor",
                "processor_class": "VoxtralProcessor",
                "feature_size": BANDS,
                "sampling_rate": 16000,
                "hop_length": 160,
                "n_fft": 400,
                "chunk_length": SECONDS,
                "n_samples": SAMPLES,
                "nb_max_frames": SECONDS * 100,
                "padding_side": "right",
                "padding_value": 0.0,
                "return_attention_mask": False,
            },
        },
        seed=seed,
        shard_size=shard_size,
        auto_class="AutoModelForMultimodalLM",
    )


class Processor:
    """The tokenizer and the extractor: transformers' processor works through Mistral's own package alone."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, WhisperFeatureExtractor

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder)

    def apply_chat_template(self, messages: list[dict[str, Any]], **arguments: Any) -> str:
        """The conversation as text."""
        return str(self.tokenizer.apply_chat_template(messages, **arguments))

    def windows(self, samples: Any) -> Any:
        """(windows, mels, frames) of a recording; as in `VoxtralProcessor._retrieve_input_features`."""
        made = self.extractor(
            samples,
            sampling_rate=16_000,
            padding=True,
            truncation=False,
            pad_to_multiple_of=SAMPLES,
            return_tensors="pt",
        )["input_features"]
        return made.reshape(BANDS, -1, SECONDS * 100).transpose(0, 1)


def make_inputs(
    processor: Processor,
    text: str,
    pictures: list[Any],
    videos: list[Any],
    arguments: Mapping[str, Any],
    recordings: Sequence[Any] = (),
) -> dict[str, Any]:
    """Each window has as many placeholders as stacks of rows."""
    import torch

    heard = [processor.windows(samples) for samples in recordings]
    first, *others = text.split("[AUDIO]")
    for windows, rest in zip(heard, others, strict=True):
        first += "[AUDIO]" * (len(windows) * SECONDS * 50 // STACK) + rest
    ids = processor.tokenizer([first], add_special_tokens=False, return_tensors="pt")["input_ids"]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"input_features": torch.cat(heard)} if heard else {})


def audio_features(model: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """Rows of all recordings."""
    return [model.get_audio_features(inputs["input_features"]).pooler_output]


CASE = FamilyCase(
    "voxtral",
    build,
    encoder_names=("audio_tower.", "multi_modal_projector."),
    other_names=(newer_name, oddly_saved_name),
    variants={"": {}, "tied": {"tie": True}},
    durations=(1.3, 5.1),
    longest=9.37,
    oracle=OracleOverrides(
        auto_class="AutoModelForMultimodalLM",
        load_processor=Processor,
        make_inputs=make_inputs,
        audio_features=audio_features,
    ),
)
