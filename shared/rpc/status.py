"""The one table between typed errors and gRPC statuses, both ways.

Knows `google.rpc.Status` details: `ErrorInfo` (always), `BadRequest` (where a
field is to blame) and `RetryInfo` (overload). Does not know any service.
"""

from __future__ import annotations

import logging
import secrets
from typing import cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from shared import errors

logger = logging.getLogger(__name__)

ERROR_DOMAIN = "percept"

CODES: dict[type[errors.PerceptError], grpc.StatusCode] = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BadMediaError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.MediaTooLargeError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedMediaError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BadEmbeddingsError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ContextLengthError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnknownModelError: grpc.StatusCode.NOT_FOUND,
    errors.UnauthorizedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.MediaFetchError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

_BY_REASON = {kind.reason: kind for kind in CODES}

# What a status without our ErrorInfo means: it came from gRPC itself or from a
# foreign server.
_BY_CODE: dict[grpc.StatusCode, type[errors.PerceptError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: errors.UnknownModelError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthorizedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.UnauthorizedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.OverloadedError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.CANCELLED: errors.UnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineError,
}

_CORE_FAULT = "Internal error from Core"
"""What grpc.aio reports when a peer refuses a stream while we still send."""


def withheld(fault: BaseException) -> errors.InternalError:
    """Logs a bug with a fresh id and returns the error that names only the id."""
    fault_id = secrets.token_hex(6)
    logger.error("internal error %s", fault_id, exc_info=fault)
    return errors.InternalError(f"internal error, logged as {fault_id}")


def to_typed(fault: BaseException) -> errors.PerceptError:
    """Returns `fault` itself where it is typed, else an `InternalError` without its text."""
    if isinstance(fault, errors.PerceptError):
        return fault
    if isinstance(fault, TimeoutError):
        return errors.DeadlineError("the request's deadline passed")
    return withheld(fault)


def to_status(error: errors.PerceptError) -> grpc.Status:
    """Builds the rich status of a typed error, for `context.abort_with_status`."""
    code = CODES[type(error)]
    details = [_error_info(error)]
    if error.param is not None:
        details.append(_bad_request(error))
    if isinstance(error, errors.OverloadedError):
        details.append(_retry_info(error))
    status = status_pb2.Status(code=getattr(code_pb2, code.name), message=error.message, details=details)
    return rpc_status.to_status(status)


def from_rpc_error(call: grpc.aio.AioRpcError, peer: str) -> errors.PerceptError:
    """Returns the typed error of a failed call.

    Args:
        call: what the stub raised.
        peer: whom we called, for example "encoder 127.0.0.1:50051"; named where
            the peer itself is to blame.
    """
    info, param, retry_after = _details(call)
    message = call.details() or call.code().name
    if info is None:
        return _foreign(call, message, peer)
    kind = _BY_REASON.get(info.reason, errors.InternalError)
    code = info.metadata.get("code") or None
    if kind is errors.OverloadedError:
        return errors.OverloadedError(message, retry_after=retry_after or 1.0, param=param, code=code)
    return kind(message, param=param, code=code)


def _foreign(call: grpc.aio.AioRpcError, message: str, peer: str) -> errors.PerceptError:
    if call.code() is grpc.StatusCode.INTERNAL and _CORE_FAULT in message:
        return errors.UnavailableError(f"{peer} closed the stream early")
    kind = _BY_CODE.get(call.code(), errors.InternalError)
    if kind is errors.UnavailableError:
        return errors.UnavailableError(f"{peer} is not reachable")
    if kind is errors.InternalError:
        return withheld(call)
    return kind(message)


def _details(
    call: grpc.aio.AioRpcError,
) -> tuple[error_details_pb2.ErrorInfo | None, str | None, float | None]:
    """Reads ErrorInfo, the first field violation and the retry delay."""
    info: error_details_pb2.ErrorInfo | None = None
    param: str | None = None
    retry_after: float | None = None
    for detail in _unpacked(call):
        if isinstance(detail, error_details_pb2.ErrorInfo) and detail.domain == ERROR_DOMAIN:
            info = detail
        elif isinstance(detail, error_details_pb2.BadRequest) and detail.field_violations:
            param = detail.field_violations[0].field
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after = detail.retry_delay.ToNanoseconds() / 1e9
    return info, param, retry_after


def _unpacked(call: grpc.aio.AioRpcError) -> list[object]:
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            return [message for any_ in status.details if (message := _unpack(any_)) is not None]
    return []


def _unpack(any_: AnyMessage) -> object | None:
    for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
        if any_.Is(kind.DESCRIPTOR):
            message = kind()
            any_.Unpack(message)
            return cast(object, message)
    return None


def _error_info(error: errors.PerceptError) -> AnyMessage:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)
    if error.code:
        info.metadata["code"] = error.code
    return _packed(info)


def _bad_request(error: errors.PerceptError) -> AnyMessage:
    violation = error_details_pb2.BadRequest.FieldViolation(field=error.param, description=error.message)
    return _packed(error_details_pb2.BadRequest(field_violations=[violation]))


def _retry_info(error: errors.OverloadedError) -> AnyMessage:
    delay = Duration()
    delay.FromNanoseconds(int(error.retry_after * 1e9))
    return _packed(error_details_pb2.RetryInfo(retry_delay=delay))


def _packed(message: object) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed
