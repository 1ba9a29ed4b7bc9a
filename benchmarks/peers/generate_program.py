"""`python -m benchmarks.peers.generate_program CHECKPOINT PORT`: measures plain `generate()` on request.

Knows transformers, and how a batch's first and last token are timed. Answers one question
at a time: GET /health, POST /measure with a workload, a batch size and a number of requests.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from benchmarks.suite.figures import Figures
from percept.bench import Target, Workload, percentile
from percept.bench.bodies import BodyBuilder
from percept.bench.prompts import TextScale

NOWHERE = Target("http://127.0.0.1/v1", model="none")


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """Seconds from a batch's begin to its first and to its last tokens."""

    first_s: float
    last_s: float


class Model:
    """A checkpoint in transformers, bfloat16 on the CPU."""

    def __init__(self, checkpoint: str) -> None:
        import torch
        import transformers

        loaded = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16)
        self._model: Any = loaded.eval()
        self._config: Any = loaded.config
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
        # The family's whole processor would want torchvision, for videos.
        self._pictures: Any = transformers.Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
        self.template_tokens = len(self._encode([[{"role": "user", "content": ""}]])["input_ids"][0])

    def answer(self, conversations: list[list[dict[str, Any]]], output_tokens: int) -> tuple[BatchTimes, int]:
        """Answers a batch with so many tokens each. Returns times and the prompts' length."""
        import torch

        started, stamps = time.perf_counter(), []

        def note(ids: Any, scores: Any, **_: Any) -> Any:
            stamps.append(time.perf_counter() - started)
            return torch.zeros(len(ids), dtype=torch.bool)

        inputs = self._encode(conversations)
        with torch.inference_mode():
            self._model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=output_tokens,
                min_new_tokens=output_tokens,
                stopping_criteria=[note],
            )
        return BatchTimes(stamps[0], time.perf_counter() - started), inputs["input_ids"].shape[1]

    def _encode(self, conversations: list[list[dict[str, Any]]]) -> dict[str, Any]:
        pictures = [_picture(part) for each in conversations for part in _picture_parts(each)]
        features = dict(self._pictures(images=pictures, return_tensors="pt")) if pictures else {}
        counts = iter(self._token_counts(features))
        placeholder = self._tokenizer.convert_ids_to_tokens(self._config.image_token_id)
        texts = []
        for each in conversations:
            text = self._tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True)
            first, *rest = text.split(placeholder)
            texts.append(first + "".join(placeholder * next(counts) + part for part in rest))
        inputs = {**self._tokenizer(texts, padding=True, return_tensors="pt"), **features}
        if pictures:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self._config.image_token_id).int()
        return inputs

    def _token_counts(self, features: dict[str, Any]) -> list[int]:
        merged = self._config.vision_config.spatial_merge_size**2
        return [int(grid.prod()) // merged for grid in features.get("image_grid_thw", ())]


def measure(model: Model, workload: Workload, batch_size: int, requests: int) -> Figures:
    """Answers a workload batch by batch, a short batch first that does not count."""
    scale = TextScale(template_tokens=model.template_tokens)
    builder = BodyBuilder(NOWHERE, workload, scale)
    warm_up = [json.loads(builder.build(-1).body)["messages"]]
    model.answer(warm_up, 2)
    times, prompt_tokens, answered = [], 0, 0
    started = time.perf_counter()
    for begin in range(0, requests, batch_size):
        indices = range(begin, min(begin + batch_size, requests))
        conversations = [json.loads(builder.build(index).body)["messages"] for index in indices]
        batch_times, prompt_tokens = model.answer(conversations, workload.output_tokens)
        times.append(batch_times)
        answered += len(conversations)
    wall_s = time.perf_counter() - started
    return _figures(times, wall_s, answered, workload.output_tokens, prompt_tokens)


def _figures(
    times: list[BatchTimes], wall_s: float, answered: int, output_tokens: int, prompt_tokens: int
) -> Figures:
    first_ms = sorted(1000 * each.first_s for each in times)
    each_ms = sorted(1000 * (each.last_s - each.first_s) / max(1, output_tokens - 1) for each in times)
    return Figures(
        requests_per_s=answered / wall_s,
        output_tokens_per_s=answered * output_tokens / wall_s,
        ttft_ms=percentile(first_ms, 50),
        ttft_p99_ms=percentile(first_ms, 99),
        tpot_ms=percentile(each_ms, 50),
        input_tokens=prompt_tokens,
        answered=answered,
    )


def _picture_parts(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    contents = [message["content"] for message in conversation if isinstance(message["content"], list)]
    return [part for content in contents for part in content if part["type"] == "image_url"]


def _picture(part: dict[str, Any]) -> Any:
    from PIL import Image

    encoded = part["image_url"]["url"].partition(",")[2]
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


def _endpoint(model: Model) -> type[BaseHTTPRequestHandler]:
    class Endpoint(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({"status": "ok"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            workload = Workload(**asked["workload"])
            self._reply(measure(model, workload, asked["batch_size"], asked["requests"]).to_json())

        def _reply(self, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Endpoint


def main() -> None:
    """Loads the checkpoint and answers until it is ended."""
    checkpoint, port = sys.argv[1:]
    HTTPServer(("127.0.0.1", int(port)), _endpoint(Model(checkpoint))).serve_forever()


if __name__ == "__main__":
    main()
