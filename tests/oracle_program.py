"""`python tests/oracle_program.py FOLDER`: plain transformers, asked over standard input.

FOLDER holds torchvision, which processors of families with video need. It is added
to the path of this process alone, because its mere presence makes transformers
choose other code; hence a process of its own. The image processor is pinned to its
PIL backend all the same: the backends differ in their pixels.

One JSON object a line in (see `oracle.py`), one a line out. Imports nothing of
Percept but the family's row of the tests, for its overrides.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
DECLARED = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""Operators whose absence would end torchvision's import, where its native part fits another torch."""


def declare_operators() -> Any:
    """Declares torchvision's operators without bodies; the result must stay alive."""
    library: Any = torch.library.Library("torchvision", "FRAGMENT")
    for declaration in DECLARED:
        library.define(declaration)
    return library


class Loaded:
    """A checkpoint in transformers: processor at once, model when it is first asked for."""

    def __init__(self, folder: Path, module: str) -> None:
        self.folder = folder
        self.overrides = importlib.import_module(module).CASE.oracle
        self.processor = (self.overrides.load_processor or load_processor)(folder)
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The whole model, float32.

        Raises:
            RuntimeError: a weight of it is not in the checkpoint, or the other way round.
        """
        if self._model is None and self.overrides.load_model is not None:
            self._model = self.overrides.load_model(self.folder).eval()
        if self._model is None:
            import transformers

            automatic = getattr(transformers, self.overrides.auto_class)
            model, loading = automatic.from_pretrained(
                self.folder,
                dtype=torch.float32,
                output_loading_info=True,
                **self.overrides.load_arguments,
            )
            wrong = {name: names for name, names in loading.items() if names}
            if wrong:
                raise RuntimeError(f"transformers does not load {self.folder} whole: {wrong}")
            self._model = model.eval()
        return self._model

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does all that a request asks for."""
        media = read_media(request["media"])
        text = request["text"]
        if text is None:
            text = self.render(request["messages"], request["chat_template"])
        inputs = self.inputs(text, media, request["processor_arguments"])
        reply: dict[str, Any] = {"text": text, "prompt_ids": inputs["input_ids"][0].tolist()}
        arrays = request["arrays"]
        if arrays is not None:
            np.savez(arrays, **{n: t.numpy() for n, t in inputs.items() if isinstance(t, torch.Tensor)})
        if request["rows"] is not None:
            np.savez(request["rows"], *[rows.float().numpy() for rows in self.media_rows(inputs)])
        if request["new_tokens"]:
            reply["new_ids"] = self.generate(inputs, request["new_tokens"], request["generate_arguments"])
        return reply

    def render(self, messages: list[dict[str, Any]], chat_template: str | None) -> str:
        """The conversation as text, by the checkpoint's template or the one given."""
        chosen = {} if chat_template is None else {"chat_template": chat_template}
        text: str = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **chosen
        )
        return text

    def inputs(self, text: str, media: Media, arguments: dict[str, Any]) -> dict[str, Any]:
        """The model's inputs for one prompt."""
        pictures, videos, recordings = media.pictures, media.videos, media.recordings
        if self.overrides.make_inputs is not None:
            heard = {"recordings": recordings} if recordings else {}
            return dict(
                self.overrides.make_inputs(self.processor, text, pictures, videos, arguments, **heard)
            )
        given: dict[str, Any] = {"text": [text], "return_tensors": "pt", **arguments}
        # As `apply_chat_template` does: no second begin token in front of a template's own.
        begin = self.processor.tokenizer.bos_token
        if begin is not None and text.startswith(begin):
            given["add_special_tokens"] = False
        if pictures:
            given["images"] = pictures
        if recordings:
            given |= {"audio": recordings, "sampling_rate": media.sampling_rate}
        if videos:
            frames, metadata = zip(*videos, strict=True)
            given |= {"videos": list(frames), "video_metadata": list(metadata), "do_sample_frames": False}
        return dict(self.processor(**given))

    def media_rows(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        """Rows of each item, or of each of its tiles, (rows, width); see `Oracle.ask`."""
        kind = kind_of(inputs)
        own = getattr(self.overrides, f"{kind}_features")
        with torch.no_grad():
            if own is not None:
                return list(own(self.model, inputs))
            name = f"get_{kind}_features"
            ask = getattr(self.model if hasattr(self.model, name) else self.model.model, name)
            taken = inspect.signature(ask).parameters
            output = ask(**{name: tensor for name, tensor in inputs.items() if name in taken})
        rows = output.pooler_output if hasattr(output, "pooler_output") else output
        return [part.reshape(-1, part.shape[-1]) for part in rows]

    def generate(self, inputs: dict[str, Any], count: int, arguments: dict[str, Any]) -> list[int]:
        """Greedy tokens, exactly `count` of them."""
        running = self.overrides.running
        within = nullcontext() if running is None else running(self.model, self.folder, inputs)
        with torch.no_grad(), within:
            if self.overrides.generate is not None:
                return self.overrides.generate(self.model, inputs, count)
            output = self.model.generate(
                **inputs,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                **self.overrides.generate_arguments,
                **arguments,
            )
        return [int(token) for token in output[0, inputs["input_ids"].shape[1] :]]


def load_processor(folder: Path) -> Any:
    """The checkpoint's own processor, its image processor on the PIL backend where it has one."""
    from transformers import AutoImageProcessor, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    if hasattr(processor, "image_processor"):
        processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor


def kind_of(inputs: dict[str, Any]) -> str:
    """Which of a prompt's items rows are asked of: videos, else pictures, else recordings."""
    pixels = [name for name in inputs if "pixel_values" in name]
    return "audio" if not pixels else "video" if "pixel_values_videos" in pixels else "image"


@dataclass
class Media:
    """A prompt's items: pictures, videos as pairs of frames and metadata, recordings of one rate.

    The sound of videos is among the recordings, all in the prompt's order.
    """

    pictures: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)
    recordings: list[Any] = field(default_factory=list)
    sampling_rate: int = 0


def read_media(media: list[dict[str, Any]]) -> Media:
    """Items from their files."""
    from PIL import Image

    found = Media()
    for item in media:
        if item["type"] == "image":
            with Image.open(item["path"]) as picture:
                found.pictures.append(picture.convert("RGB"))
        elif item["type"] == "video":
            found.videos.append(read_video(item))
        heard = item if item["type"] == "audio" else item.get("sound")
        if heard is not None:
            found.recordings.append(np.load(heard["path"]))
            found.sampling_rate = heard["rate"]
    return found


def read_video(item: dict[str, Any]) -> tuple[Any, Any]:
    """Frames and their metadata."""
    from transformers.video_utils import VideoMetadata

    frames = np.load(item["path"])
    metadata = VideoMetadata(
        total_num_frames=item["total_num_frames"],
        fps=item["fps"],
        frames_indices=item["frames_indices"],
        duration=item["total_num_frames"] / item["fps"],
        height=frames.shape[1],
        width=frames.shape[2],
    )
    return frames, metadata


def main() -> int:
    """Answers until standard input ends."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path += [sys.argv[1]]
    sys.path.insert(0, str(REPOSITORY))
    torch.set_num_threads(1)
    alive = declare_operators()
    loaded: dict[tuple[str, str], Loaded] = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = (request["folder"], request["module"])
        try:
            if key not in loaded:
                loaded[key] = Loaded(Path(key[0]), key[1])
            reply = loaded[key].answer(request)
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=answers, flush=True)
    del alive
    return 0


if __name__ == "__main__":
    sys.exit(main())
