"""Sizes of the models that are measured: Qwen2.5-VL 7B and 3B, and one so small that a CPU takes it.

Knows numbers. Does not know torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.suite.tokenizer import SPECIAL_IDS


@dataclass(frozen=True)
class ModelSizes:
    """One model, as `Qwen2_5_VLConfig` takes it.

    Attributes:
        text: of the language model.
        vision: of the tower.
        tied: the output layer is the input embedding.
    """

    name: str
    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool

    def config(self) -> Any:
        """A transformers configuration in bfloat16."""
        from transformers import Qwen2_5_VLConfig

        return Qwen2_5_VLConfig(
            text_config=self.text | {"bos_token_id": None, "eos_token_id": None},
            vision_config=self.vision | {"out_hidden_size": self.text["hidden_size"]},
            image_token_id=SPECIAL_IDS["<|image_pad|>"],
            video_token_id=SPECIAL_IDS["<|video_pad|>"],
            vision_start_token_id=SPECIAL_IDS["<|vision_start|>"],
            vision_end_token_id=SPECIAL_IDS["<|vision_end|>"],
            tie_word_embeddings=self.tied,
            architectures=["Qwen2_5_VLForConditionalGeneration"],
            dtype="bfloat16",
        )


def _text(
    hidden: int, inner: int, layers: int, heads: int, key_heads: int, vocabulary: int, section: list[int]
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section},
    }


def _vision(depth: int, hidden: int, inner: int, heads: int, full: list[int]) -> dict[str, Any]:
    return {
        "depth": depth,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_heads": heads,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": full,
    }


_REAL_VISION = _vision(32, 1280, 3420, 16, [7, 15, 23, 31])
LARGE = ModelSizes(
    "Qwen2.5-VL-7B", _text(3584, 18944, 28, 28, 4, 152_064, [16, 24, 24]), _REAL_VISION, tied=False
)
SMALL = ModelSizes(
    "Qwen2.5-VL-3B", _text(2048, 11008, 36, 16, 2, 151_936, [16, 24, 24]), _REAL_VISION, tied=True
)
TINY = ModelSizes("tiny", _text(64, 96, 2, 4, 2, 151_936, [2, 3, 3]), _vision(2, 32, 64, 2, [1]), tied=True)


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        device: "cuda" or "cpu".
        models: for decoding, the first for prefill, throughput and the tower too.
        services: model of the real services.
        context: tokens before the decoding steps.
        steps: decoding steps that are timed.
        batch, prompt, answer: of the throughput.
        prefill: tokens of the long prompt.
        picture: height and width of the tower's pictures, in pixels.
        pictures: in one run of the tower, and in one request.
        repeats: of what is timed as a whole.
        copy_bytes, product: sizes of the limits' measurements.
    """

    device: str = "cuda"
    models: list[ModelSizes] = field(default_factory=lambda: [LARGE, SMALL])
    services: ModelSizes = SMALL
    context: int = 1024
    steps: int = 200
    batch: int = 64
    prompt: int = 128
    answer: int = 256
    prefill: int = 8192
    picture: tuple[int, int] = (1092, 1932)
    pictures: int = 5
    repeats: int = 5
    copy_bytes: int = 8 << 30
    product: int = 8192


SMOKE = Scale(
    device="cpu",
    models=[TINY],
    services=TINY,
    context=40,
    steps=3,
    batch=3,
    prompt=12,
    answer=4,
    prefill=96,
    picture=(56, 84),
    pictures=2,
    repeats=2,
    copy_bytes=1 << 22,
    product=128,
)
