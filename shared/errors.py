"""What can go wrong, as types.

    PerceptError
    ├── InvalidRequestError        the caller's mistake
    │   ├── BadMediaError          bytes that are no media of an accepted kind
    │   │   ├── MediaTooLargeError     over a byte, pixel or duration limit
    │   │   └── UnsupportedMediaError  a format or modality that is not served
    │   ├── BadEmbeddingsError     precomputed embeddings that do not fit
    │   └── ContextLengthError     prompt (and answer) longer than the context
    ├── UnknownModelError          a model that is not served
    ├── UnauthorizedError          no API key, or a wrong one
    ├── OverloadedError            a bounded queue is full; carries a retry delay
    ├── UnavailableError           not ready, draining, or a peer is gone
    ├── MediaFetchError            a URL that could not be fetched
    ├── DeadlineError              the time was up
    └── InternalError              our bug; the text is withheld, the id is logged

Knows nothing about transports: `shared/rpc/status.py` maps the leaves to gRPC
and back, `gateway/errors.py` maps them to HTTP.
"""

from __future__ import annotations

from typing import ClassVar


class PerceptError(Exception):
    """Base of all typed errors. `str(error)` is text for the caller.

    Attributes:
        reason: stable UPPER_SNAKE name, sent as `google.rpc.ErrorInfo.reason`.
        param: path of the field to blame, for example
            `messages[0].content[1].image_url`, or None.
        code: short machine-readable code for the OpenAI error object, or None.
    """

    reason: ClassVar[str] = "INTERNAL"
    default_code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code


class InvalidRequestError(PerceptError):
    """The request breaks a rule that its sender can mend."""

    reason = "INVALID_REQUEST"


class BadMediaError(InvalidRequestError):
    """A payload that cannot be decoded."""

    reason = "BAD_MEDIA"
    default_code = "invalid_media"


class MediaTooLargeError(BadMediaError):
    """A payload over a limit on bytes, pixels or duration."""

    reason = "MEDIA_TOO_LARGE"
    default_code = "media_too_large"


class UnsupportedMediaError(BadMediaError):
    """A payload of a format or modality that is not accepted."""

    reason = "UNSUPPORTED_MEDIA"
    default_code = "unsupported_media"


class BadEmbeddingsError(InvalidRequestError):
    """Precomputed embeddings of a wrong format, type, shape or value."""

    reason = "BAD_EMBEDDINGS"
    default_code = "invalid_embeddings"


class ContextLengthError(InvalidRequestError):
    """A prompt that leaves no room in the model's context."""

    reason = "CONTEXT_LENGTH"
    default_code = "context_length_exceeded"


class UnknownModelError(PerceptError):
    """The named model is not served here."""

    reason = "UNKNOWN_MODEL"
    default_code = "model_not_found"


class UnauthorizedError(PerceptError):
    """The API key is missing or wrong."""

    reason = "UNAUTHORIZED"
    default_code = "invalid_api_key"


class OverloadedError(PerceptError):
    """A bounded queue is full.

    Attributes:
        retry_after: seconds after which another try is worth while.
    """

    reason = "OVERLOADED"
    default_code = "overloaded"

    def __init__(
        self, message: str, *, retry_after: float = 1.0, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after = retry_after


class UnavailableError(PerceptError):
    """The service is not ready, drains, or a peer that it needs is gone."""

    reason = "UNAVAILABLE"
    default_code = "unavailable"


class MediaFetchError(PerceptError):
    """Media that a request points to could not be fetched."""

    reason = "MEDIA_FETCH"
    default_code = "media_fetch_failed"


class DeadlineError(PerceptError):
    """The request's time was up."""

    reason = "DEADLINE"
    default_code = "deadline_exceeded"


class InternalError(PerceptError):
    """A bug of ours. The text names an id that the log explains."""

    reason = "INTERNAL"
    default_code = "internal_error"
