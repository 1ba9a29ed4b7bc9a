"""Who is asked: a server that speaks OpenAI's chat API, and what it accepts beyond it.

Knows URLs and the fields of a body. Does not know the protocol below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from percept.bench.checks import require

CHAT = "/chat/completions"


@dataclass(frozen=True, slots=True)
class Target:
    """One server.

    Attributes:
        url: of the API, "http://127.0.0.1:8000/v1". "/v1" is added to a bare host; a URL that ends with
            "/chat/completions" is taken as it is.
        model: its name there; "auto" is the first that the server lists.
        name: what to call it in tables; the model's name where empty.
        api_key: sent as a bearer token. Never written to a file.
        ignore_eos: asks for answers of exactly the wanted length (`ignore_eos`, `min_tokens`). Percept and
            vLLM take these fields, strict servers refuse them.
        stream_usage: asks for token counts at the stream's end (`stream_options`).
        extra_body: fields added to each body, over those that are there.
        timeout_s: seconds for one request, after which it is an error.

    Raises:
        InvalidRequestError: not an http:// or https:// URL, or no time at all.
    """

    url: str
    model: str = "auto"
    name: str = ""
    api_key: str | None = field(default=None, repr=False)
    ignore_eos: bool = True
    stream_usage: bool = True
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname)
        require(named, "url", f"is {self.url!r}, but must look like http://HOST:PORT/v1")
        require(self.timeout_s > 0, "timeout_s", "must be more than 0")

    @property
    def base_url(self) -> str:
        """The API's root, without a slash at its end."""
        bare = self.url.rstrip("/").removesuffix(CHAT)
        return bare if urlsplit(bare).path else f"{bare}/v1"

    @property
    def chat_url(self) -> str:
        """Where chat completions are asked for."""
        return self.base_url + CHAT

    @property
    def headers(self) -> dict[str, str]:
        """What every request says about itself."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
