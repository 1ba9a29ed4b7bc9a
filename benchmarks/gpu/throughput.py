"""A batch of 64, answered by the engine and by transformers' continuous batching, with the same weights."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.gpu.clock import free_memory
from benchmarks.gpu.language import BLOCK_SIZE, engine_throughput, prompts
from benchmarks.gpu.models import fused, random_decoder, random_runner
from benchmarks.gpu.sizes import ModelSizes, Scale

PEER_MEMORY = 0.4
"""Share of the free memory that the peer's cache may take."""


def measure_throughput(sizes: ModelSizes, scale: Scale) -> dict[str, Any]:
    """Output tokens per second of both, in turns, and their ratio; how much of the answers agrees."""
    device = torch.device(scale.device)
    decoder, module = random_decoder(sizes, device)
    length = scale.prompt + scale.answer
    # The peer's own copy: the engine's decoder joins its matrices.
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    runner, _ = random_runner(
        fused(decoder, device), device, scale.batch * (length // BLOCK_SIZE + 1), max_num_seqs=scale.batch,
        max_num_batched_tokens=scale.prompt * scale.batch, max_model_len=length, block_size=BLOCK_SIZE,
    )  # fmt: skip
    vocabulary = sizes.text["vocab_size"]
    engine_throughput(runner, scale, vocabulary)
    ours, answers = zip(*(engine_throughput(runner, scale, vocabulary) for _ in range(2)), strict=True)
    found: dict[str, Any] = {"model": sizes.name, "batch": scale.batch, "tokens_per_s": max(ours)}
    del runner
    free_memory(device)
    try:
        peer = peer_model(sizes, weights, device)
        rates, theirs = _peer_throughput(peer, scale, vocabulary)
    except Exception as error:  # the peer's failure must not lose our own figure
        found["peer_error"] = f"{type(error).__name__}: {error}"
        return found
    return found | {
        "peer_tokens_per_s": max(rates),
        "ratio": max(ours) / max(rates),
        # In bf16 answers part where two logits are nearly equal, and stay apart from there on.
        "equal_first_tokens": _equal_share(answers[0], theirs, 1),
        "equal_tokens": _equal_share(answers[0], theirs, scale.answer),
    }


def _equal_share(ours: list[list[int]], theirs: list[list[int]], count: int) -> float:
    """Share of the first `count` tokens of each answer that are the same."""
    equal = [
        first == second
        for one, other in zip(ours, theirs, strict=True)
        for first, second in zip(one[:count], other[:count], strict=True)
    ]
    return sum(equal) / len(equal)


def peer_model(sizes: ModelSizes, weights: dict[str, torch.Tensor], device: torch.device) -> Any:
    """The text model as transformers serves it, with the very same numbers: text positions are alike."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    text = {name: value for name, value in sizes.text.items() if name != "rope_parameters"}
    rope = {"rope_type": "default", "rope_theta": sizes.text["rope_parameters"]["rope_theta"]}
    config = Qwen2Config(**text, rope_parameters=rope, tie_word_embeddings=sizes.tied, dtype="bfloat16")
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        peer = Qwen2ForCausalLM(config)
    peer.load_state_dict(weights, assign=True)
    with device:
        # Frequencies are computed, not loaded.
        peer.model.rotary_emb = Qwen2RotaryEmbedding(config)
    return peer.eval()


def _peer_throughput(peer: Any, scale: Scale, vocabulary: int) -> tuple[list[float], list[list[int]]]:
    """Output tokens per second of two warm runs, and the tokens of the last."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    generation = GenerationConfig(
        max_new_tokens=scale.answer, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
    )
    config = ContinuousBatchingConfig(
        max_memory_percent=PEER_MEMORY, max_batch_tokens=scale.prompt * scale.batch, allow_block_sharing=False
    )
    inputs = prompts(scale, vocabulary, scale.prompt)
    rates: list[float] = []
    tokens: list[list[int]] = []
    for _ in range(3):
        begin = time.perf_counter()
        outputs = peer.generate_batch(
            inputs, generation_config=generation, continuous_batching_config=config, record_timestamps=True
        )
        wall = time.perf_counter() - begin
        tokens = [list(output.generated_tokens) for output in outputs.values()]
        assert len(tokens) == scale.batch, "the peer has lost requests"
        assert all(len(each) == scale.answer for each in tokens), "the peer's answers are of other lengths"
        rates.append(scale.batch * scale.answer / _span(outputs, wall))
    return rates[1:], tokens


def _span(outputs: Any, wall: float) -> float:
    """Seconds from the first request to the last token, without the peer's start and end where it tells."""
    begun = [output.created_time for output in outputs.values()]
    ended = [stamp for output in outputs.values() for stamp in (output.timestamps or [])]
    return max(ended) - min(begun) if ended and min(begun) > 0 else wall
