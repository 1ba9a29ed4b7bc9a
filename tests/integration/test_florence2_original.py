"""Florence-2 in its authors' layout: the same model, by other names, without the tokens that they add.

A tiny checkpoint in transformers' layout is written again in theirs; both have the same weights,
prompts and answers.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_service.engine.messages import SamplingSettings
from llm_service.runner.load import load_runner
from shared.checkpoint import read_checkpoint
from shared.errors import InvalidRequestError
from shared.families import load_family
from shared.families.florence2_layout import Florence2Layout
from shared.families.florence2_original import ADDED_TOKENS, is_original
from tests.asking import picture
from tests.families.florence2 import RUN_LENGTH, build
from tests.integration.engine_case import LocalEngine
from tests.integration.engine_front import settings_for
from tests.laying_out import Layouter
from tests.unit.families.parameters import HALVES, load

COUNT = 16
PROMPTS = ("<OD>", "<REGION_TO_CATEGORY><loc_52><loc_332><loc_932><loc_774>", "What is in the picture?")

NAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.multi_modal_projector\.image_projection\.weight$", "image_projection"),
    (r"^model\.multi_modal_projector\.image_position_embed\.", "image_pos_embed."),
    (r"^model\.multi_modal_projector\.", ""),
    (r"^model\.vision_tower\.", "vision_tower."),
    (r"\.convs\.(\d+)\.conv\.", r".convs.\1.proj."),
    (r"\.conv([12])\.(weight|bias)$", r".conv\1.fn.dw.\2"),
    (r"\.spatial_block\.norm1\.", ".spatial_block.window_attn.norm."),
    (r"\.channel_block\.norm1\.", ".channel_block.channel_attn.norm."),
    (r"\.norm2\.", ".ffn.norm."),
    (r"\.(window|channel)_attn\.(qkv|proj)\.", r".\1_attn.fn.\2."),
    (r"\.ffn\.(fc[12])\.", r".ffn.fn.net.\1."),
)
"""transformers' names to the authors'."""


def published_name(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def as_published(native: Path, folder: Path) -> Path:
    """The checkpoint as its authors would have published it."""
    config = json.loads((native / "config.json").read_text())
    size = int(config["image_token_id"])
    shutil.copytree(native, folder, ignore=shutil.ignore_patterns("*.safetensors", "processor_config.json"))
    vision, text = config["vision_config"], config["text_config"]
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Florence2ForConditionalGeneration"],
                "auto_map": {"AutoConfig": "configuration_florence2.Florence2Config"},
                "model_type": "florence2",
                "vocab_size": size,
                "vision_config": {
                    **{name: vision[name] for name in vision if name.startswith(("patch", "num_", "depths"))},
                    "model_type": "davit",
                    "enable_checkpoint": False,
                    "window_size": vision["window_size"],
                    "projection_dim": vision["projection_dim"],
                    "dim_embed": vision["embed_dim"],
                    "visual_temporal_embedding": {
                        "type": "COSINE",
                        "max_temporal_embeddings": vision["max_temporal_embeddings"],
                    },
                    "image_pos_embed": {
                        "type": "learned_abs_2d",
                        "max_pos_embeddings": vision["max_position_embeddings"],
                    },
                    "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
                },
                "text_config": {
                    **{name: value for name, value in text.items() if name != "model_type"},
                    "vocab_size": size,
                    "forced_bos_token_id": text["bos_token_id"],
                    "forced_eos_token_id": text["eos_token_id"],
                    "no_repeat_ngram_size": RUN_LENGTH,
                    "num_beams": 3,
                },
            }
        )
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": text["eos_token_id"]}))
    words = json.loads((native / "tokenizer.json").read_text())
    words["added_tokens"] = [
        token for token in words["added_tokens"] if token["content"] not in (*ADDED_TOKENS, "<image>")
    ]
    (folder / "tokenizer.json").write_text(json.dumps(words))
    about = json.loads((native / "tokenizer_config.json").read_text())
    kept = ("bos_token", "eos_token", "pad_token", "tokenizer_class", "model_max_length")
    (folder / "tokenizer_config.json").write_text(json.dumps({name: about[name] for name in kept}))
    tensors = {
        published_name(name): tensor for name, tensor in load_file(native / "model.safetensors").items()
    }
    tensors["image_projection"] = tensors["image_projection"].T.contiguous()
    shared = tensors["language_model.model.shared.weight"][:size].contiguous()
    tensors |= {
        "language_model.model.shared.weight": shared,
        "language_model.model.encoder.embed_tokens.weight": shared.clone(),
        "language_model.model.decoder.embed_tokens.weight": shared.clone(),
        "language_model.lm_head.weight": shared.clone(),
        "language_model.final_logits_bias": torch.zeros(1, size),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def published(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_published(native, tmp_path_factory.mktemp("published") / "florence2")


@pytest.mark.parametrize("half", HALVES)
def test_weights(native: Path, published: Path, half: str) -> None:
    assert is_original(read_checkpoint(published)) and not is_original(read_checkpoint(native))
    ours, theirs = (load(load_family(read_checkpoint(folder)), half) for folder in (published, native))
    # The output layer is in the file, beside the embedding that is it elsewhere.
    both = ours.keys() & theirs.keys()
    assert len(both) >= len(theirs) - 1
    for name in both:
        assert torch.equal(ours[name], theirs[name][: len(ours[name])]), name


def test_prompts(native: Path, published: Path) -> None:
    ours, theirs = Layouter(published), Layouter(native)
    for prompt in PROMPTS:
        assert ours.token_ids(prompt, []) == theirs.token_ids(prompt, [])
    assert isinstance(ours.layout, Florence2Layout) and isinstance(theirs.layout, Florence2Layout)
    assert ours.layout.added_tokens == (*ADDED_TOKENS, "<image>")
    assert ours.layout.rules([1]) == theirs.layout.rules([1])
    assert ours.layout.start_ids == theirs.layout.start_ids
    assert {"it", "the image", "a set"} < ours.layout.left_out


def answers(folder: Path, suppressed: tuple[int, ...] = ()) -> list[list[int]]:
    runner = load_runner(settings_for(folder), lambda fraction, text: None)
    local, front = LocalEngine(folder, runner), Layouter(folder)
    layout: Any = front.layout
    local.front.encode("a" * 64, picture(2, (112, 84)))
    asked = []
    for prompt in PROMPTS:
        ids = front.token_ids(prompt, [])
        settings = SamplingSettings(
            rules=layout.rules(ids), logit_bias={token: -100.0 for token in suppressed}
        )
        asked.append(local.front.add(ids, ["a" * 64], max_token_count=COUNT, sampling=settings))
    return local.run(asked)


def test_answers(native: Path, published: Path) -> None:
    """The authors' vocabulary ends before the picture's token."""
    config = json.loads((native / "config.json").read_text())
    behind = range(config["image_token_id"], config["text_config"]["vocab_size"])
    got = answers(published)
    assert got == answers(native, tuple(behind))
    assert len({tuple(tokens) for tokens in got}) == len(PROMPTS)


def test_another_composition_of_rows_is_refused(published: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(published, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_feature_source"] = ["last_frame"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidRequestError, match="image_feature_source"):
        load_family(read_checkpoint(folder)).prompt_layout()
