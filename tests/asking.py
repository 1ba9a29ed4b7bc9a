"""Questions for tests: pictures, messages and embeddings as an OpenAI client writes them.

Knows the public API only.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

EmbeddingFormat = Literal["torch", "npy", "safetensors"]


def picture(seed: int, size: tuple[int, int] = (112, 84)) -> Image.Image:
    """Draws a picture, another for each seed.

    Args:
        size: width and height in pixels.
    """
    draw = random.Random(seed)

    def colour() -> tuple[int, int, int]:
        return draw.randrange(256), draw.randrange(256), draw.randrange(256)

    image = Image.new("RGB", size, colour())
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = draw.randrange(size[0]), draw.randrange(size[1])
        box = (left, top, left + draw.randrange(8, 60), top + draw.randrange(8, 60))
        (pen.ellipse if draw.random() < 0.5 else pen.rectangle)(box, fill=colour())
    return image


def moving_picture(seed: int, size: tuple[int, int], count: int) -> npt.NDArray[np.uint8]:
    """Frames of a picture that changes with every second frame.

    Args:
        size: width and height in pixels.

    Returns:
        RGB, uint8 (count, height, width, 3).
    """
    return np.stack([np.asarray(picture(1000 * seed + index // 2, size)) for index in range(count)])


def sound(seed: int, seconds: float, rate: int = 16_000) -> npt.NDArray[np.float32]:
    """A recording, another for each seed: tones that come and go, and a little noise.

    Returns:
        float32 (samples,).
    """
    dice = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    samples = 0.01 * dice.standard_normal(len(time))
    for _ in range(4):
        pitch, start, length = dice.uniform(150, 3000), dice.uniform(0, seconds), dice.uniform(0.1, 0.5)
        loudness = np.exp(-(((time - start) / length) ** 2)) * dice.uniform(0.1, 0.3)
        samples += loudness * np.sin(2 * np.pi * pitch * time)
    return samples.astype(np.float32)


def wave_file(samples: npt.NDArray[np.float32], rate: int) -> bytes:
    """A WAV file that keeps every sample: 32-bit floating-point numbers. The same bytes at any time.

    Args:
        samples: (samples,) or (samples, channels).
    """
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    data = bytearray(buffer.getvalue())
    peak = data.find(b"PEAK")
    if peak >= 0:
        # Behind its name, size and version it says when it was written.
        data[peak + 12 : peak + 16] = bytes(4)
    return bytes(data)


def audio_part(samples: npt.NDArray[np.float32], rate: int = 16_000) -> dict[str, Any]:
    """A content part with a recording that keeps every sample."""
    data = base64.b64encode(wave_file(samples, rate)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def data_url(image: Image.Image, form: str = "PNG") -> str:
    """The picture as a data URL; PNG keeps every pixel."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_part(image: Image.Image | str) -> dict[str, Any]:
    """A content part with a picture, or with a URL as it stands."""
    url = image if isinstance(image, str) else data_url(image)
    return {"type": "image_url", "image_url": {"url": url}}


def video_part(frames: Any, frames_per_second: float, sound: tuple[Any, int] | None = None) -> dict[str, Any]:
    """A content part with a video that keeps every pixel and sample: H.264 of RGB, without loss, in MOV.

    Args:
        frames: RGB, uint8 (frames, height, width, 3).
        sound: samples, float32 (samples,), and their rate.
    """
    import av

    buffer = io.BytesIO()
    rate = Fraction(frames_per_second).limit_denominator(1000)
    with av.open(buffer, "w", format="mov" if sound is not None else "mp4") as container:
        stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        heard: Any = None
        if sound is not None:
            heard = container.add_stream("pcm_f32le", rate=sound[1], layout="mono")
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        container.mux(stream.encode())
        if sound is not None:
            whole = av.AudioFrame.from_ndarray(sound[0][None], format="flt", layout="mono")
            whole.sample_rate, whole.pts = sound[1], 0
            container.mux(heard.encode(whole))
            container.mux(heard.encode(None))
    kind = "quicktime" if sound is not None else "mp4"
    url = f"data:video/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "video_url", "video_url": {"url": url}}


def frame_list_part(frames: Any) -> dict[str, Any]:
    """A content part with a video as a list of pictures, one a second; PNG keeps every pixel."""
    pictures = [data_url(Image.fromarray(frame)).partition(",")[2] for frame in frames]
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(pictures)}"}}


def embeddings_part(
    rows: Any, form: EmbeddingFormat, grid: Sequence[int] | None = None, *, bare: bool = False
) -> dict[str, Any]:
    """A content part with precomputed embeddings.

    Args:
        rows: float tensor (rows, hidden).
        form: how the tensor is written.
        grid: time, height and width in patches; sent as JSON with "torch", as
            a tensor [1, 3] in the same format otherwise.
        bare: send the rows alone, not in an object.
    """
    if bare:
        return {"type": "image_embeds", "image_embeds": encode_tensor(rows, form)}
    fields: dict[str, Any] = {"image_embeds": encode_tensor(rows, form)}
    if grid is not None:
        import torch

        as_json = form == "torch"
        fields["image_grid_thw"] = list(grid) if as_json else encode_tensor(torch.tensor([list(grid)]), form)
    return {"type": "image_embeds", "image_embeds": fields}


def encode_tensor(tensor: Any, form: EmbeddingFormat) -> str:
    """A tensor as base64 of a file in the format."""
    import torch
    from safetensors.torch import save

    buffer = io.BytesIO()
    if form == "torch":
        torch.save(tensor, buffer)
    elif form == "npy":
        np.save(buffer, tensor.numpy())
    else:
        buffer.write(save({"tensor": tensor.contiguous()}))
    return base64.b64encode(buffer.getvalue()).decode()


def user(*parts: Any) -> dict[str, Any]:
    """A user's message: strings are text, pictures are pictures, dicts are parts as they stand."""
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            content.append(part if isinstance(part, dict) else image_part(part))
    return {"role": "user", "content": content}


def template_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation as chat templates of checkpoints take it."""

    def part(given: dict[str, Any]) -> dict[str, Any]:
        kind = given["type"].removeprefix("input_").partition("_")[0]
        return given if kind == "text" else {"type": kind}

    return [
        {**message, "content": [part(given) for given in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]
