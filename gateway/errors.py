"""The one table between typed errors and HTTP, in OpenAI's shape.

Knows statuses, error types and headers. Does not know where errors come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from shared import errors
from shared.rpc.status import withheld

_CALLER = "invalid_request_error"
_SERVER = "server_error"


@dataclass(frozen=True, slots=True)
class HttpForm:
    """How one kind of error looks over HTTP."""

    status: int
    type: str


HTTP_FORMS: dict[type[errors.PerceptError], HttpForm] = {
    errors.InvalidRequestError: HttpForm(400, _CALLER),
    errors.BadMediaError: HttpForm(400, _CALLER),
    errors.MediaTooLargeError: HttpForm(413, _CALLER),
    errors.UnsupportedMediaError: HttpForm(415, _CALLER),
    errors.BadEmbeddingsError: HttpForm(400, _CALLER),
    errors.ContextLengthError: HttpForm(400, _CALLER),
    errors.MediaFetchError: HttpForm(400, _CALLER),
    errors.UnknownModelError: HttpForm(404, _CALLER),
    errors.UnauthorizedError: HttpForm(401, "authentication_error"),
    errors.OverloadedError: HttpForm(429, "rate_limit_error"),
    errors.UnavailableError: HttpForm(503, _SERVER),
    errors.DeadlineError: HttpForm(504, _SERVER),
    errors.InternalError: HttpForm(500, _SERVER),
}

_MAX_MESSAGE_LENGTH = 1000
_UNAVAILABLE_RETRY_S = 1


def error_object(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """Returns OpenAI's error object, its text cut to a sane length."""
    if len(message) > _MAX_MESSAGE_LENGTH:
        message = message[: _MAX_MESSAGE_LENGTH - 3] + "..."
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_body(error: errors.PerceptError) -> dict[str, Any]:
    """Returns the error object of a typed error."""
    return error_object(error.message, HTTP_FORMS[type(error)].type, error.param, error.code)


def error_response(fault: BaseException) -> Response:
    """Returns the whole answer to any exception; text of what is not typed is withheld."""
    error = as_percept_error(fault)
    response = json_response(error_body(error), HTTP_FORMS[type(error)].status)
    response.headers.update(_headers(error))
    return response


def as_percept_error(fault: BaseException) -> errors.PerceptError:
    """Returns the typed error that a caller may see."""
    if isinstance(fault, errors.PerceptError):
        return fault
    if isinstance(fault, TimeoutError):
        return errors.DeadlineError("The request took longer than its deadline allows.")
    return withheld(fault)


def chosen(group: BaseExceptionGroup[Exception], preferred: type[Exception]) -> Exception:
    """Returns the one exception of concurrent tasks that stands for all of them.

    The first of the preferred kind, else the first typed error, else the first.
    """
    flat = _flattened(group)
    for kind in (preferred, errors.PerceptError):
        for fault in flat:
            if isinstance(fault, kind):
                return fault
    return flat[0]


def _flattened(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    flat: list[Exception] = []
    for fault in group.exceptions:
        flat += _flattened(fault) if isinstance(fault, BaseExceptionGroup) else [fault]
    return flat


def json_response(content: Any, status: int = 200) -> Response:
    """Returns a JSON answer; an infinite number becomes null."""
    return Response(to_json(content), status, media_type="application/json")


def _headers(error: errors.PerceptError) -> dict[str, str]:
    if isinstance(error, errors.OverloadedError):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, errors.UnavailableError):
        return {"Retry-After": str(_UNAVAILABLE_RETRY_S)}
    if isinstance(error, errors.UnauthorizedError):
        return {"WWW-Authenticate": "Bearer"}
    return {}
