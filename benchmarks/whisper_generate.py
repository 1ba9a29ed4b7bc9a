"""`python -m benchmarks.whisper_generate CHECKPOINT THREADS`: transformers' own batch over recordings.

Reads a JSON line {"seeds": [...], "seconds": S, "tokens": N} and answers with one that says how
long feature extraction, encoder and decoder took together. Knows transformers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.sounds import RATE, noise


class Model:
    """A Whisper checkpoint in transformers: bfloat16, SDPA, on the CPU."""

    def __init__(self, checkpoint: str) -> None:
        import torch
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

        loaded = WhisperForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        self._model: Any = loaded.eval()
        self._extractor: Any = WhisperFeatureExtractor.from_pretrained(checkpoint)

    def answer(self, seeds: Sequence[int], seconds: float, tokens: int) -> dict[str, float]:
        """Writes down a batch, so many tokens of each recording; returns seconds."""
        import torch

        clips = [noise(seed, seconds) for seed in seeds]
        begin = time.perf_counter()
        features = self._extractor(clips, sampling_rate=RATE, return_tensors="pt").input_features
        extracted = time.perf_counter()
        with torch.inference_mode():
            output = self._model.generate(
                input_features=features.to(torch.bfloat16),
                language="en",
                task="transcribe",
                return_timestamps=False,
                do_sample=False,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                force_unique_generate_call=True,
            )
        whole = time.perf_counter() - begin
        prompt = 4
        assert output.shape == (len(clips), prompt + tokens), output.shape
        return {"whole_s": whole, "features_s": extracted - begin}


def main() -> None:
    """Answers until its input ends."""
    checkpoint, threads = sys.argv[1:]
    import torch

    torch.set_num_threads(int(threads))
    model = Model(checkpoint)
    for line in sys.stdin:
        asked = json.loads(line)
        figures = model.answer(asked["seeds"], asked["seconds"], asked["tokens"])
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
