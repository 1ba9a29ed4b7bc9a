"""Phi-4-multimodal, tiny: tiles of 64 pixels in 32 x 32 patches, which its processor counts on; adapters in
folders beside the weights; frequencies that switch where a prompt of three pictures passes them; a
recording of more than 40 seconds is cut by the encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase, OracleOverrides
from tests.families.parts.lora import merged_weights, write_adapter
from tests.families.parts.pixels import HALF
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_llama_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>"
    "{% elif part['type'] == 'audio' %}<|audio|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TILE, PATCH, BANDS = 64, 2, 80
PLACEHOLDER = "<|audio|>"
SWITCH = 1024
LONGEST_ANSWER = 64
CONTEXT = 8192
TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def build(
    folder: Path,
    *,
    seed: int = 0,
    shard_size: str = "5GB",
    adapters: bool = True,
    tie: bool = False,
    longrope: bool = True,
) -> Path:
    """Writes the checkpoint.

    Args:
        adapters: with those for pictures and for speech.
        tie: share the input embedding with the output layer.
        longrope: with frequencies of its own beyond `SWITCH` tokens.
    """
    from transformers import Phi4MultimodalConfig

    tokenizer = build_llama_tokenizer(image_token="<|image|>", more=MARKS, named={"audio_token": "<|audio|>"})
    config = Phi4MultimodalConfig(
        **text_config(len(tokenizer), tokenizer)
        | {"max_position_embeddings": CONTEXT, "eos_token_id": [tokenizer.eos_token_id]},
        original_max_position_embeddings=SWITCH,
        sliding_window=2 * CONTEXT,
        partial_rotary_factor=0.75,
        rope_parameters=rope() if longrope else None,
        tie_word_embeddings=tie,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": TILE,
            "crop_size": TILE,
            "patch_size": PATCH,
            "image_token_id": tokenizer.convert_tokens_to_ids("<|image|>"),
        },
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 32,
            "bias_max_distance": 10,
            "input_size": BANDS,
            "audio_token_id": tokenizer.convert_tokens_to_ids("<|audio|>"),
        },
    )
    save_checkpoint(
        folder,
        config,
        tokenizer,
        TEMPLATE,
        {
            "preprocessor_config.json": {
                "image_processor_type": "Phi4MultimodalImageProcessorFast",
                "feature_extractor_type": "Phi4MultimodalFeatureExtractor",
                "processor_class": "Phi4MultimodalProcessor",
                "size": {"height": TILE, "width": TILE},
                "patch_size": PATCH,
                "dynamic_hd": 4,
                "feature_size": BANDS,
                "sampling_rate": 16000,
                "image_mean": HALF,
                "image_std": HALF,
            },
            "processor_config.json": {"processor_class": "Phi4MultimodalProcessor"},
        },
        seed=seed,
        shard_size=shard_size,
        auto_class="AutoModelForCausalLM",
        change=with_small_rows,
    )
    if adapters:
        for name, rank in (("vision-lora", 8), ("speech-lora", 4)):
            write_adapter(folder, folder / name, TARGETS, rank=rank, alpha=2 * rank, seed=seed)
    return folder


def with_small_rows(model: Any) -> None:
    """Rows of pictures as large as those of words: no norm stands between the tower and its projection.

    Means and factors of spectrograms, which are no parameters, become random too.
    """
    import torch

    embed = model.model.embed_tokens_extend
    with torch.no_grad():
        embed.image_embed.img_projection_down.weight *= 0.03
        drawn = embed.audio_embed.encoder.embed.out.weight.flatten()
        norm = embed.audio_embed.encoder.encoder_embedding
        norm.global_mean.copy_(8 + drawn[:BANDS])
        norm.global_invstd.copy_(0.25 + 0.1 * drawn[BANDS : 2 * BANDS].abs())


def rope() -> dict[str, Any]:
    """Frequencies of a head of 16 of which 12 turn: six short and six long factors."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [1.0, 2.0, 4.0, 6.0, 8.0, 12.0],
    }


def load_processor(folder: Path) -> Any:
    """The checkpoint's own: its image processor works through torchvision alone."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    # Its class does not take the template that lies beside it.
    processor.chat_template = processor.tokenizer.chat_template
    return processor


def image_features(model: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """The rows that the whole model puts in the placeholders' places."""
    import torch

    ids = inputs["input_ids"]
    given = {name: inputs[name] for name in ("image_pixel_values", "image_sizes", "image_attention_mask")}
    embeds = model.model.embed_tokens_extend(ids, torch.zeros(*ids.shape, model.config.hidden_size), **given)
    return [embeds[ids == model.config.vision_config.image_token_id]]


def audio_features(model: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """Rows of each recording, as the whole model puts them in the placeholders' places."""
    import torch

    mode = "vision" if "image_pixel_values" in inputs else "speech"
    audio_id, width = model.config.audio_config.audio_token_id, model.config.hidden_size
    rows = []
    for features, count in inputs["heard"]:
        ids = torch.full((1, int(count)), audio_id)
        rows.append(
            model.model.embed_tokens_extend.audio_embed(
                ids,
                torch.zeros(1, int(count), width),
                audio_input_features=features,
                audio_embed_sizes=count,
                audio_projection_mode=mode,
            )[0]
        )
    return rows


def make_inputs(
    processor: Any,
    text: str,
    pictures: list[Any],
    videos: list[Any],
    arguments: Mapping[str, Any],
    recordings: Sequence[Any] = (),
) -> dict[str, Any]:
    """The processor's, and no key-value cache where the answer passes the switch.

    transformers drops the cache there and computes the last token without the others. Each recording
    is processed by itself: beside longer ones the encoder would see its padding.
    """
    made = [
        processor.audio_processor(samples, sampling_rate=16_000, return_tensors="pt")
        for samples in recordings
    ]
    heard = [(one["audio_input_features"], one["audio_embed_sizes"]) for one in made]
    shown: dict[str, Any] = {"images": pictures} if pictures else {}
    shown |= {"audio": list(recordings), "sampling_rate": 16_000} if recordings else {}
    inputs = dict(processor(text=[text], return_tensors="pt", **shown, **arguments))
    inputs |= {"heard": heard} if heard else {}
    inputs |= {"audio_input_features": heard[0][0], "audio_embed_sizes": heard[0][1]} if heard else {}
    length = inputs["input_ids"].shape[1]
    return inputs | ({"use_cache": False} if SWITCH - LONGEST_ANSWER < length <= SWITCH else {})


def running(model: Any, folder: Path, inputs: Mapping[str, Any]) -> AbstractContextManager[None]:
    """With the adapter for pictures where there are any, or that for recordings; see `model.set_adapter`."""
    seen, heard = "image_pixel_values" in inputs, "heard" in inputs
    adapter = folder / ("vision-lora" if seen else "speech-lora")
    return merged_weights(model, adapter) if (seen or heard) and adapter.is_dir() else nullcontext()


def generate(model: Any, inputs: Mapping[str, Any], count: int) -> list[int]:
    """Greedy tokens, behind embeddings where several recordings are heard."""
    import torch

    given = {name: value for name, value in inputs.items() if name != "heard"}
    if len(inputs.get("heard", ())) > 1:
        ids = inputs["input_ids"]
        pictures = {name: given[name] for name in given if name.startswith("image_")}
        embeds = model.model.embed_tokens_extend(ids, model.model.embed_tokens(ids), **pictures).clone()
        embeds[ids == model.config.audio_config.audio_token_id] = torch.cat(audio_features(model, inputs))
        kept = {name: given[name] for name in ("use_cache", "attention_mask") if name in given}
        given = {"inputs_embeds": embeds, **kept}
    output = model.generate(**given, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    return [int(token) for token in output[0, -count:]]


def tower_pixels(tower: Any, features: Any) -> dict[str, Any]:
    """By the image processor's names."""
    pixels, masks = tower.pixels(features)
    return {"image_pixel_values": pixels.numpy(), "image_attention_mask": masks.float().numpy()}


CASE = FamilyCase(
    "phi4_multimodal",
    build,
    encoder_names=("model.embed_tokens_extend.",),
    variants={
        "": {},
        "without_adapters": {"adapters": False},
        "tied_one_rope": {"tie": True, "longrope": False},
    },
    sizes=((64, 48), (30, 70)),
    least_side=12,
    longest=42.0,
    chunk=96,
    tower_pixels=tower_pixels,
    oracle=OracleOverrides(
        auto_class="AutoModelForCausalLM",
        load_processor=load_processor,
        make_inputs=make_inputs,
        image_features=image_features,
        audio_features=audio_features,
        generate=generate,
        # Through SDPA its tower attends causally where no picture is padded, and else not.
        load_arguments={"attn_implementation": {"": "sdpa", "vision_config": "eager"}},
        running=running,
    ),
)
