"""Whatever a script has of a medium to the items of a prompt.

Knows the kinds of Python values: files, bytes, PIL pictures, arrays, tensors and
lists of them. Pillow and NumPy are imported where such a value comes, torch never.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from percept.client.items import Item, file_item, make_item
from percept.client.loaded import is_float_tensor, is_pil, is_torch_tensor, rank
from protos.media.v1 import media_pb2
from shared.errors import BadMediaError, InvalidRequestError, MediaFetchError, PerceptError
from shared.families.catalogue import Modality

_EMBEDDINGS_SUFFIX = ".safetensors"
_FRAMES_RANK = 4
_PICTURE_RANKS = (2, 3)
_FRAME_TYPES = frozenset({"video/jpeg", "video/jpg", "video/png"})
"""Data URLs of these types are lists of frames, as a gateway takes them."""
_RECORDINGS = frozenset({b"fLaC", b"OggS", b"caff", b".snd", b"RF64", b"RIFX", b"ADIF"})
"""First bytes of files that hold sound alone."""


def items_of(value: Any, modality: Modality, settings: str, param: str) -> list[Item]:
    """The items that a value stands for, in order.

    Args:
        value: a file's path, `file://` or data URL; its bytes; a PIL picture; pixels, uint8
            (height, width, channels) or (pictures, height, width, channels); for videos the
            frames, uint8 (frames, height, width, 3) or a list of pictures, alone or with
            {"fps": ...} in a tuple; for audio samples with their rate, (array, rate) or
            {"array": ..., "sampling_rate": ...}, see `wave_of_array`; embeddings as float
            tensors (rows, width) or (items, rows, width), as a mapping of named tensors, as
            `Embeddings` or as the path of a safetensors file; or a list of any of these.
        modality: what the value is of.
        settings: canonical JSON of processor settings. Embeddings have none.
        param: where the value stands, for errors.

    Raises:
        InvalidRequestError: it is nothing of this; `param` says which.
        MediaFetchError: a file that cannot be read.
    """
    try:
        return _items_of(value, modality, settings, param)
    except PerceptError as error:
        error.param = error.param if error.param and error.param.startswith(param) else param
        raise


def _items_of(value: Any, modality: Modality, settings: str, param: str) -> list[Item]:
    if modality == "video" and (clip := _clip(value)) is not None:
        frames, frame_rate = clip
        return [_frames_item(frames, frame_rate, settings, param)]
    if modality == "audio" and (wave := _wave(value)) is not None:
        return [file_item(wave, modality, settings, param)]
    if isinstance(value, list | tuple):
        return [
            item
            for index, entry in enumerate(value)
            for item in items_of(entry, modality, settings, f"{param}[{index}]")
        ]
    if isinstance(value, Mapping) or is_float_tensor(value):
        return _embeddings(value, modality, param)
    if isinstance(value, str | Path):
        return _of_file(value, modality, settings, param)
    if isinstance(value, bytes | bytearray | memoryview):
        return [file_item(_some(bytes(value)), modality, settings, param)]
    if modality == "image" and (pictures := _pngs(value)) is not None:
        names = [param] if len(pictures) == 1 else [f"{param}[{index}]" for index in range(len(pictures))]
        return [file_item(png, modality, settings, name) for png, name in zip(pictures, names, strict=True)]
    plain = "samples with their rate" if modality == "audio" else "pixels"
    raise InvalidRequestError(
        f"{_shown(value)} is no {modality}: give a file, bytes, {plain} or embeddings", param=param
    )


def _embeddings(value: Any, modality: Modality, param: str) -> list[Item]:
    from percept.client.embeddings import Embeddings, embeddings_items

    return embeddings_items(Embeddings.of(value, modality), param)


def _of_file(value: str | Path, modality: Modality, settings: str, param: str) -> list[Item]:
    text = str(value)
    if text[:5].lower() == "data:":
        return [_data_url_item(text, modality, settings, param)]
    path = _local_path(text)
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise MediaFetchError(f"{path}: {error.strerror}") from None
    if path.suffix == _EMBEDDINGS_SUFFIX:
        from percept.client.embeddings import Embeddings, embeddings_items

        return embeddings_items(Embeddings.from_bytes(payload), param)
    return [file_item(_some(payload), modality, settings, param)]


def _local_path(text: str) -> Path:
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Path(text).expanduser()
    if scheme.lower() == "file":
        return Path(unquote(urlsplit(text).path))
    raise MediaFetchError(f"{scheme}:// is not fetched here: give the file or its bytes, or ask a gateway")


def _data_url_item(url: str, modality: Modality, settings: str, param: str) -> Item:
    head, comma, data = url.partition(",")
    if not comma:
        raise BadMediaError("the data URL has no comma before its data")
    kind, *parameters = (part.strip() for part in head[len("data:") :].lower().split(";"))
    if parameters[-1:] != ["base64"]:
        return file_item(_some(unquote_to_bytes(data)), modality, settings, param)
    are_frames = modality == "video" and kind in _FRAME_TYPES
    try:
        decoded = [
            _some(base64.b64decode(piece, validate=True))
            for piece in (data.split(",") if are_frames else [data])
        ]
    except (binascii.Error, ValueError):
        raise BadMediaError("the data is not valid base64") from None
    if are_frames:
        return _frame_list_item(decoded, 0.0, settings, param)
    return file_item(decoded[0], modality, settings, param)


def guess_modality(value: Any) -> Modality:
    """What a value is of, by its type, name or first bytes; a picture where nothing says otherwise."""
    from_embeddings = getattr(value, "modality", None)
    if from_embeddings in ("image", "video", "audio"):
        return from_embeddings  # type: ignore[no-any-return]
    if _samples(value) is not None:
        return "audio"
    if isinstance(value, Mapping):
        kinds = {str(name).partition("_")[0] for name in value}
        return "video" if "video" in kinds else "audio" if "audio" in kinds else "image"
    if isinstance(value, str | Path):
        kind = mimetypes.guess_type(str(value))[0] or ""
        return "video" if kind.startswith("video/") else "audio" if kind.startswith("audio/") else "image"
    if isinstance(value, bytes | bytearray | memoryview):
        return _sniffed(bytes(value[:16]))
    return "video" if _clip(value) is not None else "image"


def _sniffed(head: bytes) -> Modality:
    if head[4:8] == b"ftyp":
        if head[8:11] in (b"M4A", b"M4B"):
            return "audio"
        return "image" if head[8:12] in (b"avif", b"avis", b"heic", b"mif1") else "video"
    if head[:4] == b"RIFF":
        return {b"AVI ": "video", b"WAVE": "audio"}.get(head[8:12], "image")  # type: ignore[return-value]
    if head[:4] == b"\x1aE\xdf\xa3":
        return "video"
    if head[:4] in _RECORDINGS or head[:3] == b"ID3" or (head[:4] == b"FORM" and head[8:11] == b"AIF"):
        return "audio"
    # MPEG audio and AAC begin with eleven ones.
    return "audio" if head[:1] == b"\xff" and head[1:2] >= b"\xe0" and head[1:2] != b"\xff" else "image"


def _samples(value: Any) -> tuple[Any, float] | None:
    """Samples and their rate, where a value is that."""
    if isinstance(value, Mapping) and "sampling_rate" in value:
        array, rate = value.get("array", value.get("raw")), value["sampling_rate"]
    elif isinstance(value, tuple) and len(value) == 2:
        array, rate = value
    else:
        return None
    is_rate = isinstance(rate, int | float) and not isinstance(rate, bool)
    return (array, rate) if is_rate and rank(array) is not None else None


def _wave(value: Any) -> bytes | None:
    """Samples as WAV; None for what is no samples."""
    found = _samples(value)
    if found is None:
        return None
    from percept.client.recordings import wave_of_array

    array, rate = found
    return wave_of_array(array.detach().cpu().numpy() if is_torch_tensor(array) else array, rate)


def _clip(value: Any) -> tuple[Any, float] | None:
    """Frames of one video and their rate, where a value is that; 0 for an unknown rate."""
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping)
    if pair:
        rate = value[1].get("fps", 0.0)
        if not isinstance(rate, int | float) or rate < 0:
            raise InvalidRequestError("fps is a number above 0")
        return (value[0], float(rate)) if _clip(value[0]) is not None else None
    if rank(value) == _FRAMES_RANK and not is_float_tensor(value):
        return value, 0.0
    if isinstance(value, list | tuple) and value and all(_is_picture(entry) for entry in value):
        return value, 0.0
    return None


def _is_picture(value: Any) -> bool:
    return is_pil(value) or (rank(value) in _PICTURE_RANKS and not is_float_tensor(value))


def _frames_item(frames: Any, rate: float, settings: str, param: str) -> Item:
    pngs = [png for frame in frames for png in _pngs(frame) or ()]
    if not pngs:
        raise BadMediaError("the video has no frames")
    return _frame_list_item(pngs, rate, settings, param)


def _frame_list_item(frames: Sequence[bytes], rate: float, settings: str, param: str) -> Item:
    message = media_pb2.FrameList(frames=frames, frames_per_second=rate)
    payload = message.SerializeToString(deterministic=True)
    return make_item(payload, "video", media_pb2.MEDIA_FORM_FRAMES, settings, param)


def _pngs(value: Any) -> list[bytes] | None:
    """A picture, or each of several in one array, as PNG; None for what is no picture."""
    if is_pil(value):
        from percept.client.pictures import png_of_picture

        return [png_of_picture(value)]
    if rank(value) is None:
        return None
    from percept.client.pictures import png_of_array

    array = value.detach().cpu().numpy() if is_torch_tensor(value) else value
    return [png_of_array(picture) for picture in (array if array.ndim == _FRAMES_RANK else [array])]


def _some(payload: bytes) -> bytes:
    if not payload:
        raise BadMediaError("the file is empty")
    return payload


def _shown(value: Any) -> str:
    return f"a value of type {type(value).__name__}"
