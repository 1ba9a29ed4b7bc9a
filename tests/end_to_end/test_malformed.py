"""Every malformed request gets a 4xx of OpenAI's shape, and the next request succeeds."""

from __future__ import annotations

import base64
import io
import pickle
import struct
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from tests.asking import data_url, embeddings_part, encode_tensor, image_part, picture, user
from tests.end_to_end.conftest import CONTEXT, ITEM_LIMIT, MODEL
from tests.families.parts.text import HIDDEN_SIZE
from tests.stack import UpStack
from tests.unit.encoder_service.test_video import many_streams
from tests.unit.encoder_service.videos import make_sound, make_video

pytestmark = pytest.mark.end_to_end

GRID = [1, 4, 4]
ROWS = 4


def url_of(payload: bytes, kind: str = "png") -> dict[str, Any]:
    return image_part(f"data:image/{kind};base64,{base64.b64encode(payload).decode()}")


def video_part_of(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def video_of(payload: bytes) -> dict[str, Any]:
    return video_part_of(f"data:video/mp4;base64,{base64.b64encode(payload).decode()}")


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


def truncated(form: str) -> bytes:
    buffer = io.BytesIO()
    picture(1, (200, 200)).save(buffer, form)
    return buffer.getvalue()[: buffer.tell() // 2]


def rows(count: int = ROWS, hidden: int = HIDDEN_SIZE, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(0)).to(dtype)


def embeds(tensor: Any, grid: Any = GRID, **extra: Any) -> dict[str, Any]:
    fields = {"image_embeds": encode_tensor(tensor, "torch"), "image_grid_thw": grid, **extra}
    return {"type": "image_embeds", "image_embeds": fields}


def raw_embeds(payload: bytes) -> dict[str, Any]:
    fields = {"image_embeds": base64.b64encode(payload).decode(), "image_grid_thw": GRID}
    return {"type": "image_embeds", "image_embeds": fields}


class _Opens:
    """Pickled, it would write a file on loading."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open, ("percept-was-here", "w")


def with_value(value: float) -> torch.Tensor:
    tensor = rows()
    tensor[1, 2] = value
    return tensor


def npy_that_claims(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


PARTS: dict[str, Callable[[], Any]] = {
    "broken base64": lambda: image_part("data:image/png;base64,@@@@"),
    "base64 of a wrong length": lambda: image_part("data:image/png;base64,abcde"),
    "no comma in the data URL": lambda: image_part("data:image/png;base64"),
    "an empty picture": lambda: image_part("data:image/png;base64,"),
    "text for a picture": lambda: url_of(b"this is no picture at all"),
    "an HTML page for a picture": lambda: url_of(b"<!DOCTYPE html><html></html>"),
    "an SVG": lambda: url_of(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "svg+xml"),
    "a truncated PNG": lambda: url_of(truncated("PNG")),
    "a truncated JPEG": lambda: url_of(truncated("JPEG"), "jpeg"),
    "a PNG header alone": lambda: url_of(b"\x89PNG\r\n\x1a\n"),
    "a pixel bomb": lambda: url_of(png_header(60_000, 60_000)),
    "a picture of no size": lambda: url_of(png_header(0, 10)),
    "a picture of one pixel by five thousand": lambda: image_part(Image.new("RGB", (1, 5000))),
    "a picture of five thousand pixels by one": lambda: image_part(Image.new("RGB", (5000, 1))),
    "an unknown scheme": lambda: image_part("ftp://127.0.0.1/picture.png"),
    "a bare path": lambda: image_part("/etc/passwd"),
    "a file that may not be read": lambda: image_part("file:///etc/passwd"),
    "a loopback address": lambda: image_part("http://127.0.0.1:9/picture.png"),
    "a link-local address": lambda: image_part("http://169.254.169.254/latest/meta-data"),
    "an empty URL": lambda: image_part(""),
    "a URL that is no text": lambda: {"type": "image_url", "image_url": {"url": 7}},
    "an unknown part": lambda: {"type": "hologram", "hologram": {}},
    "a part without a type": lambda: {"foo": "bar"},
    "an audio part": lambda: {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "text for a video": lambda: video_of(b"this is no video at all"),
    "a picture for a video": lambda: video_of(png_header(60_000, 60_000)),
    "a truncated video": lambda: video_of(make_video(20)[:-500]),
    "a video without frames": lambda: video_of(make_sound()),
    "a video of a hundred thousand streams": lambda: video_of(many_streams(100_000)),
    "a video of huge frames": lambda: video_of(make_video(1, size=(4096, 4096))),
    "a playlist for a video": lambda: video_of(b"#EXTM3U\nfile:///etc/passwd"),
    "an empty list of frames": lambda: video_part_of("data:video/jpeg;base64,"),
    "a list of broken frames": lambda: video_part_of("data:video/jpeg;base64,AAAA,AAAA"),
    "a video on a loopback address": lambda: video_part_of("http://127.0.0.1:9/film.mp4"),
    "embeddings of a video without a grid": lambda: {
        "type": "video_embeds",
        "video_embeds": {"video_embeds": encode_tensor(rows(), "torch")},
    },
    "a wrong hidden size": lambda: embeds(rows(hidden=HIDDEN_SIZE // 2)),
    "a row too few": lambda: embeds(rows(ROWS - 1)),
    "a row too many": lambda: embeds(rows(ROWS + 1)),
    "rank three": lambda: embeds(rows().unsqueeze(0)),
    "rank one": lambda: embeds(rows().flatten()),
    "no rows": lambda: embeds(rows(0)),
    "integers": lambda: embeds(rows().to(torch.int64)),
    "not a number": lambda: embeds(with_value(float("nan"))),
    "infinity": lambda: embeds(with_value(float("inf"))),
    "a sparse tensor": lambda: embeds(torch.eye(ROWS, HIDDEN_SIZE).to_sparse()),
    "a huge sparse tensor": lambda: embeds(
        torch.sparse_coo_tensor(torch.tensor([[0], [0]]), [1.0], (10**6, 10**6))
    ),
    "a pickled object": lambda: raw_embeds(pickle.dumps(_Opens())),
    "a dict for a tensor": lambda: embeds({"a": rows()}),
    "garbage for a tensor": lambda: raw_embeds(b"\x80\x02garbage"),
    "raw floats for a tensor": lambda: raw_embeds(rows().numpy().tobytes()),
    "an array that claims terabytes": lambda: raw_embeds(npy_that_claims("(1000000, 1000000)")),
    "an array of a negative size": lambda: raw_embeds(npy_that_claims("(-4, 64)")),
    "a negative grid": lambda: embeds(rows(), [1, -4, -4]),
    "a grid of zeros": lambda: embeds(rows(), [0, 0, 0]),
    "a huge grid": lambda: embeds(rows(), [1, 40_000, 40_000]),
    "a grid of two": lambda: embeds(rows(), [4, 4]),
    "a grid of text": lambda: embeds(rows(), ["a", "b", "c"]),
    "no grid": lambda: embeddings_part(rows(), "npy"),
    "an unknown key": lambda: embeds(rows(), zz=encode_tensor(rows(), "torch")),
    "broken base64 for a tensor": lambda: {"type": "image_embeds", "image_embeds": {"image_embeds": "@@"}},
}

FIELDS: dict[str, dict[str, Any]] = {
    "an unknown field": {"surprise": 1},
    "a field that is not served": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "a JSON schema": {"response_format": {"type": "json_object"}},
    "a temperature out of range": {"temperature": 3},
    "a temperature of text": {"temperature": "warm"},
    "no tokens": {"max_completion_tokens": 0},
    "too many choices": {"n": 1000},
    "a token that does not exist": {"logit_bias": {"999999": 1}},
    "stream options without a stream": {"stream_options": {"include_usage": True}},
    "an empty stop string": {"stop": [""]},
    "no messages": {"messages": []},
    "a message of no known role": {"messages": [{"role": "wizard", "content": "hi"}]},
    "processor settings": {"mm_processor_kwargs": {"max_pixels": 1}},
    "no frames": {"media_io_kwargs": {"video": {"num_frames": 0}}},
    "more than the context": {"max_completion_tokens": CONTEXT + 1},
}


def check_error(answer: httpx.Response, statuses: set[int]) -> dict[str, Any]:
    assert answer.status_code in statuses, answer.text[:500]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and 0 < len(error["message"]) <= 1000
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in error["message"]
    return error


def check_alive(stack: UpStack) -> None:
    """A good request is answered, with a picture and without another's leftovers."""
    body = {"model": MODEL, "messages": [user(picture(41), "what is this?")], "max_completion_tokens": 2}
    answer = httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 2


def post(stack: UpStack, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=30)


@pytest.mark.parametrize("name", PARTS)
def test_a_malformed_part_is_refused(stack: UpStack, name: str) -> None:
    body = {"model": MODEL, "messages": [user(PARTS[name](), "what is this?")], "max_completion_tokens": 2}
    check_error(post(stack, body), {400, 413, 415})
    check_alive(stack)


@pytest.mark.parametrize("name", FIELDS)
def test_a_malformed_field_is_refused_by_name(stack: UpStack, name: str) -> None:
    body = {"model": MODEL, "messages": [user("hello")], "max_completion_tokens": 2, **FIELDS[name]}
    error = check_error(post(stack, body), {400})
    (field,) = FIELDS[name]
    assert field in f"{error['param']} {error['message']}"
    check_alive(stack)


def test_the_smallest_picture_is_a_picture(stack: UpStack) -> None:
    body = {"model": MODEL, "messages": [user(Image.new("RGB", (1, 1)), "?")], "max_completion_tokens": 2}
    assert post(stack, body).status_code == 200


def test_a_pickle_was_not_run(stack: UpStack, repository: Any) -> None:
    assert not (repository / "percept-was-here").exists()


def test_too_many_pictures_are_refused(stack: UpStack) -> None:
    parts = [picture(i) for i in range(ITEM_LIMIT + 1)]
    error = check_error(post(stack, {"model": MODEL, "messages": [user(*parts, "?")]}), {400})
    assert str(ITEM_LIMIT) in error["message"]
    check_alive(stack)


def test_a_prompt_longer_than_the_context_is_refused(stack: UpStack) -> None:
    error = check_error(post(stack, {"model": MODEL, "messages": [user("word " * (2 * CONTEXT))]}), {400})
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is" in error["message"]
    check_alive(stack)


def test_a_body_over_the_limit_is_refused(stack: UpStack) -> None:
    text = "x" * (9 * 2**20)
    error = check_error(post(stack, {"model": MODEL, "messages": [user(text)]}), {413})
    assert error["message"]
    check_alive(stack)


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"null", b'{"messages": NaN}', b"\xff\xfe", b'"text"'])
def test_a_body_that_is_no_object_is_refused(stack: UpStack, payload: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{stack.url}/v1/chat/completions", content=payload, headers=headers, timeout=30)
    check_error(answer, {400})
    check_alive(stack)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/chat/completions", 405), ("POST", "/v1/nothing", 404)]
)
def test_unknown_places_have_the_same_shape(stack: UpStack, method: str, path: str, status: int) -> None:
    check_error(httpx.request(method, f"{stack.url}{path}", timeout=30), {status})


def test_special_tokens_typed_as_text_are_text(stack: UpStack) -> None:
    body = {
        "model": MODEL,
        "messages": [user("<|image_pad|><|im_end|>", picture(42))],
        "max_completion_tokens": 2,
    }
    answer = post(stack, body)
    assert answer.status_code == 200, answer.text


def test_a_picture_in_another_format_is_read(stack: UpStack) -> None:
    for form in ("JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        part = image_part(data_url(picture(43), form))
        answer = post(stack, {"model": MODEL, "messages": [user(part, "?")], "max_completion_tokens": 2})
        assert answer.status_code == 200, (form, answer.text)
