"""Models with random weights, made on the device: nothing is read from a disk.

Knows how to fill modules. What they say means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.gpu.sizes import ModelSizes
from benchmarks.suite.tokenizer import TEXT_TOKENS
from llm_service.engine.messages import EngineSettings
from llm_service.runner.attention import choose_backend
from llm_service.runner.attention.registration import ATTENTION_NAME, register_attention
from llm_service.runner.cuda_graphs import can_capture
from llm_service.runner.fuse import fuse
from llm_service.runner.kv_cache import KvCache
from llm_service.runner.model_runner import ModelRunner
from shared.families.decoder import Decoder, DecoderModule
from shared.families.qwen2_vl import Qwen2VLTower
from shared.families.tower_attention import prepare_tower

DTYPE = torch.bfloat16
DEVIATION = 0.02
SHARD_BYTES = 1 << 30


def filled(build: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """Builds a module on the device with random parameters in bfloat16; its buffers keep their type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)
    try:
        with device, torch.no_grad():
            module = build()
            for name, parameter in module.named_parameters():
                fill(name, parameter)
    finally:
        torch.set_default_dtype(before)
    return module.to(device).eval().requires_grad_(False)


def fill(name: str, parameter: torch.Tensor) -> None:
    """Noise, but for the scales of norms."""
    if parameter.ndim == 1:
        parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    else:
        parameter.normal_(std=DEVIATION)


def random_decoder(sizes: ModelSizes, device: torch.device) -> tuple[Decoder, DecoderModule]:
    """The language model, and the module in it."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    register_attention()
    text = sizes.config().get_text_config()
    text._attn_implementation, text.use_cache = ATTENTION_NAME, False

    def build() -> nn.Module:
        return DecoderModule(Qwen2_5_VLTextModel(text), text.hidden_size, text.vocab_size, sizes.tied)

    module = filled(build, device)
    assert isinstance(module, DecoderModule)
    if sizes.tied:
        module.lm_head.weight = module.model.embed_tokens.weight  # type: ignore[assignment,union-attr]
    return Decoder(module, text, axes=3), module


def random_tower(sizes: ModelSizes, device: torch.device) -> tuple[Qwen2VLTower, nn.Module, Any]:
    """The tower, the module in it, and its configuration."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

    vision = sizes.config().vision_config
    vision._attn_implementation = "sdpa"
    module = filled(lambda: modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel(vision), device)
    prepare_tower(module, vision, device, DTYPE)
    return Qwen2VLTower(module, vision.out_hidden_size, vision.spatial_merge_size), module, vision


def fused(decoder: Decoder, device: torch.device) -> Any:
    """The decoder as a service computes with it; the one that was given cannot compute afterwards."""
    return fuse(decoder, device, choose_backend(device, DTYPE, 16))


def random_runner(
    decoder: Any, device: torch.device, block_count: int, **settings: Any
) -> tuple[ModelRunner, EngineSettings]:
    """A runner of a decoder, with its decoding steps recorded where that can be."""
    engine_settings = EngineSettings(model="random", device=str(device), dtype="bfloat16", **settings)
    backend = choose_backend(device, DTYPE, engine_settings.block_size)
    captures = can_capture(device, backend) and not engine_settings.enforce_eager
    cache = KvCache(
        decoder.kv_layout, block_count, engine_settings.block_size, DTYPE, device, with_scratch=captures
    )
    runner = ModelRunner(decoder, cache, backend, engine_settings, axes=3, context_length=32768)
    if captures:
        runner.capture_graphs(lambda done: None)
    return runner, engine_settings


def write_checkpoint(sizes: ModelSizes, folder: Path, device: torch.device) -> None:
    """Writes a checkpoint that services load: weights made on the device, tokenizer and processors beside."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from benchmarks.suite.checkpoint import ensure_checkpoint

    # Brings tokenizer, template and processors of the family; its tiny weights are replaced.
    ensure_checkpoint(folder, tiny=True)
    for old in folder.glob("model*"):
        old.unlink()
    config = sizes.config()
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = dict(Qwen2_5_VLForConditionalGeneration(config).named_parameters())
    shard: dict[str, torch.Tensor] = {}
    count = 0
    for index, (name, shape) in enumerate(shapes.items()):
        value = torch.empty(shape.shape, dtype=DTYPE, device=device)
        fill(name, value)
        if name.endswith("embed_tokens.weight"):
            # Ids without text never win: with a tied output layer their logits are zero.
            value[TEXT_TOKENS:] = 0
        shard[name] = value.cpu()
        size = sum(each.numel() * each.itemsize for each in shard.values())
        if size > SHARD_BYTES or index == len(shapes) - 1:
            save_file(shard, folder / f"model-{count:05d}.safetensors", metadata={"format": "pt"})
            _index(folder, shard, count)
            shard, count = {}, count + 1


def _index(folder: Path, shard: dict[str, torch.Tensor], count: int) -> None:
    """Adds a shard to the index file."""
    import json

    file = folder / "model.safetensors.index.json"
    known = json.loads(file.read_text())["weight_map"] if file.exists() else {}
    known |= dict.fromkeys(shard, f"model-{count:05d}.safetensors")
    file.write_text(json.dumps({"metadata": {}, "weight_map": known}))
