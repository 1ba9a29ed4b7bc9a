"""The gateway's address as people write it. Knows URLs alone."""

from __future__ import annotations


def gateway_url(written: str) -> str:
    """The base URL without "/v1": `http://` is added to a bare HOST:PORT."""
    url = written if "://" in written else f"http://{written}"
    return url.rstrip("/").removesuffix("/v1")
