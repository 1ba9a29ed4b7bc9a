"""Reads a multipart/form-data body with one file in it, under limits, as it arrives.

Knows the format by python-multipart's parser. Does not know what the fields mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from gateway.body import read_into
from gateway.budget import Holding
from shared.errors import InvalidRequestError, MediaTooLargeError, UnsupportedMediaError

FILE = "file"

_MAX_FIELDS = 64
_MAX_FIELD_BYTE_COUNT = 128 * 1024
"""Of all fields but the file together."""

_MAX_BOUNDARY_LENGTH = 200
_MAX_PREAMBLE_BYTE_COUNT = 64 * 1024
_OVERHEAD_BYTE_COUNT = 1024 * 1024
"""What a body may have beyond its file."""


@dataclass(slots=True)
class UploadForm:
    """A form that was read.

    Attributes:
        fields: texts by name, in order.
        file: the bytes of the part named "file"; None where there was none.
    """

    fields: dict[str, list[str]] = field(default_factory=dict)
    file: bytes | None = None


async def read_form(request: Request, max_file_byte_count: int, holding: Holding) -> UploadForm:
    """Reads a request's body.

    Raises:
        UnsupportedMediaError: the Content-Type is no multipart/form-data.
        InvalidRequestError: the body is none, or has too many or too large fields.
        MediaTooLargeError: the file is over its limit; checked while it arrives.
        OverloadedError: all requests together hold too many bytes.
        ClientDisconnect: the client left before the body was complete.
    """
    reader = _FormReader(_boundary(request), max_file_byte_count)
    await read_into(reader, request, max_file_byte_count + _OVERHEAD_BYTE_COUNT, holding)
    return reader.form()


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.lower() != b"multipart/form-data":
        raise UnsupportedMediaError(
            "The Content-Type of the request must be multipart/form-data.", code="unsupported_content_type"
        )
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= _MAX_BOUNDARY_LENGTH:
        raise InvalidRequestError("The Content-Type has no boundary.", code="invalid_form")
    return boundary


class _Preamble:
    """What may stand in front of the first boundary and means nothing (RFC 2046, 5.1.1)."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\n--" + boundary
        # A boundary that begins the body stands at the beginning of a line too.
        self._tail = b"\n"
        self._byte_count = 0
        self._is_over = False

    def behind(self, chunk: bytes) -> bytes:
        """What of a chunk, and of the end of those before it, is from the first boundary on.

        Raises:
            InvalidRequestError: so much comes without a boundary that it is no preamble.
        """
        if self._is_over:
            return chunk
        held = self._tail + chunk
        place = held.find(self._delimiter)
        self._byte_count += len(chunk) if place < 0 else place
        if self._byte_count > _MAX_PREAMBLE_BYTE_COUNT:
            raise _bad_form()
        if place >= 0:
            self._is_over = True
            return held[place + 1 :]
        self._tail = held[-len(self._delimiter) :]
        return b""


class _FormReader:
    """A body's sink; see `gateway.body.Sink`."""

    def __init__(self, boundary: bytes, max_file_byte_count: int) -> None:
        self._preamble = _Preamble(boundary)
        self._max_file_byte_count = max_file_byte_count
        self._texts: list[tuple[str, bytearray]] = []
        self._file: bytearray | None = None
        self._target = bytearray()
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._disposition = b""
        self._field_byte_count = 0
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": lambda data, start, end: self._header_grows(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._header_grows(1, data[start:end]),
                "on_header_end": self._header_ends,
                "on_headers_finished": self._content_begins,
                "on_part_data": lambda data, start, end: self._content_grows(data[start:end]),
                "on_end": self._end,
            },
        )

    def take(self, chunk: bytes) -> None:
        """See `Sink`."""
        try:
            self._parser.write(self._preamble.behind(chunk))
        except FormParserError:
            raise _bad_form() from None

    def clear(self) -> None:
        """See `Sink`."""
        self._texts.clear()
        self._file, self._target = None, bytearray()

    def form(self) -> UploadForm:
        """What was read.

        Raises:
            InvalidRequestError: the body ended early, or holds bytes that are no text.
        """
        if not self._ended:
            raise _bad_form()
        form = UploadForm(file=None if self._file is None else bytes(self._file))
        for name, value in self._texts:
            try:
                text = value.decode()
            except UnicodeDecodeError:
                raise InvalidRequestError(f"'{name}' is no text.", param=name) from None
            form.fields.setdefault(name, []).append(text)
        return form

    def _part_begins(self) -> None:
        self._disposition = b""

    def _header_grows(self, part: int, data: bytes) -> None:
        self._header[part].extend(data)

    def _header_ends(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _content_begins(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")[:256]
        if kind != b"form-data" or not name:
            raise _bad_form()
        self._target = bytearray()
        if name == FILE:
            if self._file is not None:
                raise InvalidRequestError("There is more than one 'file'.", param=FILE)
            self._file = self._target
            return
        self._texts.append((name, self._target))
        if len(self._texts) > _MAX_FIELDS:
            raise InvalidRequestError(f"The form has more than {_MAX_FIELDS} fields.", code="invalid_form")

    def _content_grows(self, data: bytes) -> None:
        self._target += data
        if self._target is self._file:
            if len(self._target) > self._max_file_byte_count:
                raise MediaTooLargeError(
                    f"The file is larger than {self._max_file_byte_count} bytes.", param=FILE
                )
            return
        self._field_byte_count += len(data)
        if self._field_byte_count > _MAX_FIELD_BYTE_COUNT:
            raise InvalidRequestError(
                f"The fields of the form have more than {_MAX_FIELD_BYTE_COUNT} bytes together.",
                param=self._texts[-1][0],
            )

    def _end(self) -> None:
        self._ended = True


def _bad_form() -> InvalidRequestError:
    return InvalidRequestError("The request body is no valid multipart/form-data.", code="invalid_form")
