"""How a number that makes no sense is refused."""

from __future__ import annotations

from shared.errors import InvalidRequestError


def require(holds: bool, name: str, complaint: str) -> None:
    """Refuses a setting by its name.

    Raises:
        InvalidRequestError: `holds` is false.
    """
    if not holds:
        raise InvalidRequestError(f"{name} {complaint}", param=name)
