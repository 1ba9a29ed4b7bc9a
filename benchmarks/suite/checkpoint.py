"""`python -m benchmarks.suite.checkpoint`: the checkpoint that all servers of the suite serve.

Qwen2-VL's architecture, random weights in bfloat16, 667 million parameters,
1.3 GB on disk. Knows the sizes and the files of such a checkpoint, and where it is kept.
Its answers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import write_weights
from benchmarks.suite.tokenizer import SPECIAL_IDS, TEXT_TOKENS, write_tokenizer

COMPLETE = ".complete"
"""Written last: a folder without it is half a checkpoint."""

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
MIN_PIXELS = 56 * 56
MAX_PIXELS = 1280 * 28 * 28

TEXT: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
}
VISION: dict[str, Any] = {"depth": 12, "embed_dim": 1024, "hidden_size": 896, "num_heads": 16, "mlp_ratio": 4}

TINY_TEXT = TEXT | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
TINY_VISION = VISION | {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}


def main() -> int:
    """Makes the checkpoint, if it is not there, and prints its folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.checkpoint", description=__doc__)
    parser.add_argument("--folder", type=Path, default=default_folder())
    print(ensure_checkpoint(parser.parse_args().folder))
    return 0


def default_folder() -> Path:
    """In the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "percept" / "benchmark-qwen2-vl-0.6b"


def ensure_checkpoint(folder: Path, *, tiny: bool = False, seed: int = 0) -> Path:
    """Returns `folder`, with a complete checkpoint in it; writes one where there is none.

    Args:
        tiny: a model of the same vocabulary but of few and narrow layers.
        seed: of the weights.
    """
    if (folder / COMPLETE).is_file():
        return folder
    print(f"writing a random checkpoint to {folder} ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = _config(TINY_TEXT if tiny else TEXT, TINY_VISION if tiny else VISION)
    config.save_pretrained(folder)
    write_tokenizer(folder)
    _write_processors(folder)
    _write_json(folder / "generation_config.json", _generation())
    # Ids without text, and those that end an answer, get a logit of zero: they never win.
    write_weights(config, folder, seed, silent_from=TEXT_TOKENS)
    (folder / COMPLETE).touch()
    return folder


def _config(text: dict[str, Any], vision: dict[str, Any]) -> Any:
    from transformers import Qwen2VLConfig

    ends = {"bos_token_id": SPECIAL_IDS["<|endoftext|>"], "eos_token_id": SPECIAL_IDS["<|im_end|>"]}
    return Qwen2VLConfig(
        text_config=text | ends,
        vision_config=vision | {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=SPECIAL_IDS["<|image_pad|>"],
        video_token_id=SPECIAL_IDS["<|video_pad|>"],
        vision_start_token_id=SPECIAL_IDS["<|vision_start|>"],
        vision_end_token_id=SPECIAL_IDS["<|vision_end|>"],
        tie_word_embeddings=True,
        architectures=["Qwen2VLForConditionalGeneration"],
        dtype="bfloat16",
    )


def _generation() -> dict[str, Any]:
    end_of_text = SPECIAL_IDS["<|endoftext|>"]
    ends = [SPECIAL_IDS["<|im_end|>"], end_of_text]
    return {
        "do_sample": False,
        "bos_token_id": end_of_text,
        "eos_token_id": ends,
        "pad_token_id": end_of_text,
    }


def _write_processors(folder: Path) -> None:
    common = {
        "processor_class": "Qwen2VLProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    }
    image = common | {"image_processor_type": "Qwen2VLImageProcessor"}
    video = common | {"video_processor_type": "Qwen2VLVideoProcessor"}
    _write_json(folder / "preprocessor_config.json", image)
    _write_json(folder / "video_preprocessor_config.json", video)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
