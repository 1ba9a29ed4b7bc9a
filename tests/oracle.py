"""The oracle: plain transformers with a checkpoint's own processor, in a process of its own.

Knows how to start it, to ask it and to end it. What it computes is in
`oracle_program.py`. Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.families.case import FamilyCase

PROGRAM = Path(__file__).with_name("oracle_program.py")
PACKAGES = Path(sys.prefix) / "reference"
"""What only the oracle may import; `make install` fills it."""

TIMEOUT_S = 240.0


@dataclass(frozen=True, eq=False)
class Recording:
    """Sound.

    Attributes:
        samples: float32 (samples,), mono.
        rate: samples a second: the family's own, since the oracle resamples nothing.
    """

    samples: npt.NDArray[np.float32]
    rate: int = 16_000


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video, as they were sampled.

    Attributes:
        frames: uint8 (frames, height, width, 3).
        fps: frames a second of the video that they were sampled from.
        frames_indices: each frame's number in that video; None: all, in order.
        total_num_frames: how many that video has; None: as many as here.
        sound: of that video; the oracle's inputs have it among their recordings.
    """

    frames: npt.NDArray[np.uint8]
    fps: float = 2.0
    frames_indices: Sequence[int] | None = None
    total_num_frames: int | None = None
    sound: Recording | None = None


Media = Image.Image | Video | Recording


@dataclass(frozen=True, slots=True)
class OracleAnswer:
    """What transformers made of a prompt.

    Attributes:
        text: the rendered prompt.
        prompt_ids: its tokens, placeholders expanded.
        new_ids: the greedy answer; empty where none was asked for.
        inputs: the processor's arrays (pixel_values, image_grid_thw, ...), where asked for.
        rows: float32 (rows, width) of each item, or of each of its tiles, where asked for.
    """

    text: str
    prompt_ids: list[int]
    new_ids: list[int] = field(default_factory=list)
    inputs: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    rows: list[npt.NDArray[np.float32]] = field(default_factory=list)


class OracleError(AssertionError):
    """Transformers raised; the text is its traceback."""


class Oracle:
    """The running process. Serves several checkpoints, and is used by one thread at a time."""

    def __init__(self) -> None:
        if not (PACKAGES / "torchvision").is_dir():
            raise OracleError(f"{PACKAGES} holds no torchvision; run: make install")
        self._scratch = tempfile.TemporaryDirectory(prefix="oracle-")
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        kept = {name: text for name, text in os.environ.items() if not name.upper().startswith("PERCEPT_")}
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(PACKAGES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
        )
        self._file_count = 0

    def ask(
        self,
        case: FamilyCase,
        folder: Path,
        prompt: str | Sequence[Mapping[str, Any]],
        media: Sequence[Media] = (),
        *,
        new_tokens: int = 0,
        inputs: bool = False,
        rows: bool = False,
        processor_arguments: Mapping[str, Any] | None = None,
        generate_arguments: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> OracleAnswer:
        """Processes a prompt and generates greedily.

        Args:
            prompt: text with one placeholder for each item, or messages as chat
                templates take them ({"type": "image"} without the picture).
            media: pictures, videos and recordings, in the order in which the prompt names them.
            new_tokens: how many tokens to generate, neither fewer nor more.
            inputs: return the processor's arrays too.
            rows: return the rows too: of videos where there are any, else of pictures, else of recordings.
            processor_arguments: further arguments of the processor.
            generate_arguments: likewise of `generate()`.
            chat_template: used in the place of the checkpoint's own.

        Raises:
            OracleError: transformers raised, or did not answer in time.
        """
        arrays_file = self._new_file("npz") if inputs else None
        rows_file = self._new_file("npz") if rows else None
        reply = self._exchange(
            {
                "folder": str(folder),
                "module": case.module,
                "text": prompt if isinstance(prompt, str) else None,
                "messages": None if isinstance(prompt, str) else list(prompt),
                "media": [self._write(item) for item in media],
                "new_tokens": new_tokens,
                "arrays": arrays_file,
                "rows": rows_file,
                "processor_arguments": dict(processor_arguments or {}),
                "generate_arguments": dict(generate_arguments or {}),
                "chat_template": chat_template,
            }
        )
        return OracleAnswer(
            reply["text"],
            reply["prompt_ids"],
            reply.get("new_ids", []),
            _read_arrays(arrays_file) if arrays_file else {},
            list(_read_arrays(rows_file).values()) if rows_file else [],
        )

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()
        self._scratch.cleanup()

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # Killing it ends the reading below.
        timer = threading.Timer(TIMEOUT_S, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            self._log.seek(0)
            raise OracleError(f"the oracle ended, or took over {TIMEOUT_S:g} s:\n{self._log.read()[-4000:]}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise OracleError(reply["error"])
        return reply

    def _write(self, item: Media) -> dict[str, Any]:
        if isinstance(item, Image.Image):
            path = self._new_file("png")
            item.save(path)
            return {"type": "image", "path": path}
        path = self._new_file("npy")
        if isinstance(item, Recording):
            np.save(path, item.samples)
            return {"type": "audio", "path": path, "rate": item.rate}
        sound = {"sound": self._write(item.sound)} if item.sound is not None else {}
        np.save(path, item.frames)
        count = len(item.frames)
        return {
            "type": "video",
            "path": path,
            "fps": item.fps,
            "frames_indices": list(item.frames_indices or range(count)),
            "total_num_frames": item.total_num_frames or count,
            **sound,
        }

    def _new_file(self, ending: str) -> str:
        self._file_count += 1
        return str(Path(self._scratch.name) / f"{self._file_count}.{ending}")


def _read_arrays(file: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(file) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    Path(file).unlink()
    return found
