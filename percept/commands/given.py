"""What is given on a command line, checked before anything is read or sent.

Knows what can stand in a request. Does not know any command.
"""

from __future__ import annotations

import httpx

from percept.gateway_url import gateway_url


def check_gateway(url: str, api_key: str | None) -> None:
    """Checks an address and a key.

    Raises:
        ValueError: no gateway can be there, or no header can carry the key.
    """
    try:
        parsed = httpx.URL(gateway_url(url))
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(f"--url {url}: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"--url {url}: write http://HOST:PORT")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise ValueError(f"--url {url}: a port is a number from 1 to 65535")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        # Without the key: it may be a secret with a slip in it.
        raise ValueError("--api-key: a key holds printable ASCII characters alone")


def check_texts(**texts: str | None) -> None:
    """Checks texts by the name of their option or argument.

    Raises:
        ValueError: bytes were given that are no UTF-8.
    """
    for name, text in texts.items():
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name}: the bytes are no text in UTF-8") from None
