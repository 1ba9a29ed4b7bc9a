"""Heads that a checkpoint names for times of words, rightly and wrongly: it serves all the same."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_service.prompt import PromptBuilder
from llm_service.text_tokenizer import TextTokenizer
from protos.llm.v1 import llm_service_pb2 as pb
from protos.media.v1 import media_pb2
from shared.checkpoint import read_checkpoint
from shared.errors import InvalidRequestError
from shared.families import load_family
from shared.families.alignment import Alignment, TellsTimes
from tests.families.whisper import ALIGNMENT_HEADS


@pytest.fixture
def changed(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str, dict[str, Any]], Path]:
    """A copy of the tiny checkpoint with other fields in one of its files."""

    def change(file: str, fields: dict[str, Any]) -> Path:
        folder = Path(shutil.copytree(tiny_checkpoint("whisper"), tmp_path / "whisper"))
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(found | fields))
        return folder

    return change


def loaded(folder: Path) -> Any:
    return load_family(read_checkpoint(folder)).language_model(torch.device("cpu"), torch.float32, "sdpa")


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a layer behind the last": ("generation_config.json", {"alignment_heads": [[0, 1], [3, 0]]}, "3 layers"),
    "a head behind the last": ("generation_config.json", {"alignment_heads": [[0, 2]]}, "2 heads"),
    "below zero": ("generation_config.json", {"alignment_heads": [[-1, 0]]}, "3 layers"),
    "no pairs": ("generation_config.json", {"alignment_heads": [0, 1]}, "no list of layers with heads"),
    "no numbers": ("generation_config.json", {"alignment_heads": [["0", 1]]}, "no list of layers with heads"),
    "no list": ("generation_config.json", {"alignment_heads": "0.1"}, "no list of layers with heads"),
    "an even filter": ("config.json", {"median_filter_width": 6}, "not odd"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_mistake_is_told_at_start_and_words_have_no_times(
    name: str, changed: Callable[[str, dict[str, Any]], Path], caplog: pytest.LogCaptureFixture
) -> None:
    file, fields, words = WRONG[name]
    folder = changed(file, fields)
    with caplog.at_level(logging.WARNING):
        layout: Any = load_family(read_checkpoint(folder)).prompt_layout()
    assert not layout.tells_times
    (record,) = [record for record in caplog.records if record.name.endswith("whisper_layout")]
    assert words in record.getMessage() and "times of words are refused" in record.getMessage()

    model = loaded(folder)
    assert isinstance(model, TellsTimes) and model.alignment is None

    tokenizer = TextTokenizer.load(folder)
    prompts = PromptBuilder(tokenizer, layout, None, {"audio": 1}, layout.vocabulary_size)
    try:
        item = media_pb2.MediaItem(
            key="0" * 64, modality=media_pb2.MODALITY_AUDIO, form=media_pb2.MEDIA_FORM_FILE
        )
        request = pb.GenerateRequest(media=[item], transcription=pb.Transcription())
        assert (await prompts.build(request, 800)).token_ids
        request.token_times = True
        with pytest.raises(InvalidRequestError, match="names no attention heads") as caught:
            await prompts.build(request, 800)
        assert caught.value.param == "token_times"
    finally:
        prompts.close()


def test_heads_that_there_are(
    tiny_checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint("whisper"))
    family = load_family(checkpoint)
    layout: Any = family.prompt_layout()
    assert layout.tells_times and not caplog.records
    alignment = loaded(checkpoint.folder).alignment
    assert isinstance(alignment, Alignment)
    assert alignment.heads == tuple((layer, head) for layer, head in ALIGNMENT_HEADS)
    assert alignment.filter_width == 7
