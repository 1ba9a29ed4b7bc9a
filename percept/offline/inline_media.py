"""Media that requests name by relative paths, put into them as data.

Knows which fields of OpenAI's parts name media, and `multi_modal_data` of prompts. Reads
nothing outside its folder.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_URLS = ("image_url", "input_image", "video_url", "audio_url")
_EMBEDDINGS = ("image_embeds", "video_embeds", "audio_embeds")
_EMBEDDINGS_SUFFIX = ".safetensors"


class MediaFolder:
    """A folder whose files requests may name."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ValueError: it is no folder.
        """
        self._folder = folder.resolve()
        if not self._folder.is_dir():
            raise ValueError(f"{folder} is no folder")

    def check(self, body: Json) -> None:
        """Says early what `inline` would.

        Raises:
            ValueError: a path leads out of the folder, or to no file.
        """
        for text, _, _ in _places(body):
            self._find(text)

    def inline(self, body: Json) -> None:
        """Replaces every relative path by the file's data, in place.

        Raises:
            ValueError: as `check`, or a file cannot be read.
        """
        for text, put, as_url in _places(body):
            path = self._find(text)
            try:
                data = base64.b64encode(path.read_bytes()).decode()
            except OSError as error:
                raise ValueError(f"{text}: {error.strerror}") from None
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            put(f"data:{kind};base64,{data}" if as_url else data)

    def _find(self, text: str) -> Path:
        path = (self._folder / text).resolve()
        if not path.is_relative_to(self._folder):
            raise ValueError(f"{text} leads out of the media folder")
        if not path.is_file():
            raise ValueError(f"{text} is no file in the media folder")
        return path


def _places(body: Json) -> Iterator[tuple[str, Callable[[str], None], bool]]:
    """The relative paths in a body: the text, what replaces it, and whether by a URL."""
    for part in _parts(body):
        for name in _URLS:
            holder, key = (part[name], "url") if isinstance(part.get(name), dict) else (part, name)
            if is_relative(holder.get(key)):
                yield holder[key], _putting(holder, key), True
        for name in _EMBEDDINGS:
            value = part.get(name)
            if isinstance(value, str) and value.endswith(_EMBEDDINGS_SUFFIX):
                yield value, _putting(part, name), False

    for data in _multi_modal_data(body):
        for modality, given in data.items():
            if isinstance(given, list):
                for index, value in enumerate(given):
                    yield from _item(value, given, index)
            else:
                yield from _item(given, data, modality)


def _item(value: Any, holder: Any, key: Any) -> Iterator[tuple[str, Callable[[str], None], bool]]:
    """The path of an item, which is a URL or an object with one or with embeddings."""
    if isinstance(value, dict):
        for name, field in value.items():
            if name in _EMBEDDINGS and isinstance(field, str) and field.endswith(_EMBEDDINGS_SUFFIX):
                yield field, _putting(value, name), False
        value, holder, key = value.get("url"), value, "url"
    if is_relative(value):
        yield value, _putting(holder, key), True


def _multi_modal_data(body: Mapping[str, Any]) -> Iterator[Json]:
    """Wherever a prompt of a completion has its media: beside it, in it, in its encoder's part."""
    prompts = body.get("prompt")
    for holder in (body, *(prompts if isinstance(prompts, list) else [prompts])):
        if isinstance(holder, dict):
            for place in (holder, holder.get("encoder_prompt")):
                if isinstance(place, dict) and isinstance(place.get("multi_modal_data"), dict):
                    yield place["multi_modal_data"]


def _parts(body: Mapping[str, Any]) -> Iterator[Json]:
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                yield part


def _putting(holder: Any, key: Any) -> Callable[[str], None]:
    def put(text: str) -> None:
        holder[key] = text

    return put


def is_relative(url: object) -> bool:
    """Says whether a URL is a path without a scheme."""
    if not isinstance(url, str) or not url or url.startswith("/"):
        return False
    scheme, colon, _ = url.partition(":")
    return not colon or not scheme.replace("+", "").replace("-", "").replace(".", "").isalnum()
