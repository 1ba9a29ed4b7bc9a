"""Granite Speech, tiny: blocks of 20 rows, windows of 15, an adapter beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase, OracleOverrides
from tests.families.parts.lora import merged_weights, write_adapter
from tests.families.parts.names import oddly_saved_name
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import QWEN_SPECIAL_TOKENS, build_qwen_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLACEHOLDER = "<|audio|>"
BANDS, WINDOW, DOWNSAMPLED, LAYERS = 20, 15, 5, 2
TARGETS = ["q_proj", "v_proj"]
HUB_LAYERS = "language_model.model.layers."


def build(
    folder: Path, *, seed: int = 0, shard_size: str = "5GB", adapter: bool = True, tie: bool = False
) -> Path:
    """Writes the checkpoint.

    Args:
        adapter: with the one for prompts with recordings.
        tie: share the input embedding with the output layer.
    """
    from transformers import GraniteSpeechConfig

    tokenizer = build_qwen_tokenizer(special_tokens=(*QWEN_SPECIAL_TOKENS, PLACEHOLDER))
    config = GraniteSpeechConfig(
        text_config=text_config(
            len(tokenizer),
            tokenizer,
            model_type="granite",
            embedding_multiplier=1.5,
            attention_multiplier=0.3,
            residual_multiplier=0.8,
            logits_scaling=2.0,
            tie_word_embeddings=tie,
        ),
        encoder_config={
            "input_dim": 2 * BANDS,
            "num_layers": LAYERS,
            "hidden_dim": 32,
            "feedforward_mult": 2,
            "num_heads": 2,
            "dim_head": 16,
            "output_dim": 10,
            "context_size": 20,
            "max_pos_emb": 32,
            "conv_kernel_size": 5,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 32,
            "encoder_hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "cross_attention_frequency": 1,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids(PLACEHOLDER),
        has_lora_adapter=adapter,
        downsample_rate=DOWNSAMPLED,
        window_size=WINDOW,
        tie_word_embeddings=tie,
    )
    save_checkpoint(
        folder,
        config,
        tokenizer,
        TEMPLATE,
        {
            "preprocessor_config.json": {
                "feature_extractor_type": "GraniteSpeechFeatureExtractor",
                "processor_class": "GraniteSpeechProcessor",
                "sampling_rate": 16000,
                "n_mels": BANDS,
                "projector_window_size": WINDOW,
                "projector_downsample_rate": DOWNSAMPLED,
            },
            "processor_config.json": {
                "audio_token": PLACEHOLDER,
                "processor_class": "GraniteSpeechProcessor",
            },
        },
        seed=seed,
        shard_size=shard_size,
        auto_class="AutoModelForSpeechSeq2Seq",
        change=with_other_statistics,
    )
    rename_as_on_the_hub(folder)
    if adapter:
        write_adapter(folder, folder, TARGETS, rank=8, alpha=16, seed=seed, layers=HUB_LAYERS, listed=True)
    return folder


def rename_as_on_the_hub(folder: Path) -> None:
    """Gives the language model's tensors the hub's names where transformers 5.17 saved them under others."""
    from safetensors.torch import load_file, save_file

    odd = "language_model.model.model."
    for file in folder.glob("model*.safetensors"):
        tensors = load_file(file)
        if any(name.startswith(odd) for name in tensors):
            renamed = {name.replace(odd, "language_model.model."): tensors[name] for name in tensors}
            save_file(renamed, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        index.write_text(index.read_text().replace(odd, "language_model.model."))


def newer_name(name: str) -> str:
    """The name that newer transformers give a tensor of the hub's layout."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


def with_other_statistics(model: Any) -> None:
    """Means and variances that the batch norms could have learnt."""
    import torch

    with torch.no_grad():
        for layer in model.model.encoder.layers:
            norm = layer.conv.batch_norm
            norm.running_mean.copy_(2 * norm.bias)
            norm.running_var.copy_(0.5 + norm.weight.square())


class Processor:
    """Tokenizer and spectrograms: transformers' own work through torchaudio alone."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def apply_chat_template(self, messages: list[dict[str, Any]], **arguments: Any) -> str:
        """The conversation as text; the template takes plain text."""
        turns = [message | {"content": plain_text(message["content"])} for message in messages]
        return str(self.tokenizer.apply_chat_template(turns, **arguments))

    def spectrum(self, samples: Any) -> Any:
        """(1, rows, 2 x bands), as `GraniteSpeechFeatureExtractor._extract_mel_spectrograms` makes it."""
        import torch
        from transformers.audio_utils import mel_filter_bank

        spectrum = torch.stft(
            torch.from_numpy(samples),
            512,
            160,
            400,
            torch.hann_window(400),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        bank = mel_filter_bank(257, BANDS, 0.0, 8000.0, 16000, norm=None, mel_scale="htk")
        mel = spectrum.abs().square().T @ torch.from_numpy(bank).float()
        logmel = mel.clip(min=1e-10).log10()
        logmel = torch.maximum(logmel, logmel.max() - 8.0) / 4 + 1
        return logmel[: len(logmel) // 2 * 2].reshape(1, -1, 2 * BANDS)


def plain_text(content: Any) -> str:
    """A message's parts as one text."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else PLACEHOLDER for part in content)


def make_inputs(
    processor: Processor,
    text: str,
    pictures: list[Any],
    videos: list[Any],
    arguments: Mapping[str, Any],
    recordings: Sequence[Any] = (),
) -> dict[str, Any]:
    """Each recording by itself: beside longer ones the encoder would see its padding."""
    heard = [processor.spectrum(samples) for samples in recordings]
    first, *others = text.split(PLACEHOLDER)
    for spectrum, rest in zip(heard, others, strict=True):
        first += PLACEHOLDER * (-(-spectrum.shape[1] // WINDOW) * (WINDOW // DOWNSAMPLED)) + rest
    ids = processor.tokenizer([first], add_special_tokens=False, return_tensors="pt")["input_ids"]
    return {"input_ids": ids, "heard": heard} | ({"input_features": heard[0]} if heard else {})


def audio_features(model: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """Rows of each recording."""
    return [model.get_audio_features(spectrum).pooler_output[0] for spectrum in inputs["heard"]]


def running(model: Any, folder: Path, inputs: Mapping[str, Any]) -> AbstractContextManager[None]:
    """With the adapter where anything is heard, as the class's `generate` does through PEFT."""
    if not inputs["heard"] or not (folder / "adapter_config.json").is_file():
        return nullcontext()
    return merged_weights(
        model, folder, lambda name: name.replace("language_model.model.", "model.language_model.")
    )


def generate(model: Any, inputs: Mapping[str, Any], count: int) -> list[int]:
    """Greedy tokens, behind embeddings where several recordings are heard."""
    import torch

    ids, heard = inputs["input_ids"], inputs["heard"]
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if len(heard) == 1:
        given["input_features"] = heard[0]
    elif heard:
        at = ids[0] == model.config.audio_token_index
        embeds = model.get_input_embeddings()(ids.masked_fill(at[None], 0)).clone()
        embeds[0, at] = torch.cat(audio_features(model, inputs))
        given = {"inputs_embeds": embeds, "attention_mask": torch.ones_like(ids)}
    output = model.generate(**given, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    return [int(token) for token in output[0, -count:]]


CASE = FamilyCase(
    "granite_speech",
    build,
    encoder_names=("encoder.", "projector."),
    unread_names=tuple(
        f"encoder.layers.{layer}.conv.batch_norm.num_batches_tracked" for layer in range(LAYERS)
    ),
    variants={"": {}, "without_adapter_tied": {"adapter": False, "tie": True}},
    durations=(1.3, 2.1),
    longest=6.0,
    other_names=(newer_name, oddly_saved_name),
    oracle=OracleOverrides(
        auto_class="AutoModelForSpeechSeq2Seq",
        load_processor=Processor,
        make_inputs=make_inputs,
        audio_features=audio_features,
        generate=generate,
        running=running,
    ),
)
