"""The file of answers: read to see what is done, cut where it was torn, appended to.

One line is one `write`, so a process that is killed leaves whole lines and at most a
torn last one. Knows OpenAI's batch format. Does not know how answers come about.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

Json = dict[str, Any]

_OK = 200


class AnswersError(Exception):
    """The file cannot be continued. `str(error)` says why."""


class AnswersFile:
    """An answers file that is open for more lines; only one process has it.

    Attributes:
        done: the custom_ids that have their line.
    """

    def __init__(self, path: Path, *, retry_failed: bool = False) -> None:
        """Opens the file, made where it is not there.

        Args:
            retry_failed: drop the lines of requests that failed, so that they are asked again.

        Raises:
            AnswersError: it cannot be opened, another process writes it, or a line is no answer.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise AnswersError(f"{path}: {error.strerror}") from None
        try:
            self._lock()
            self.done = self._continue(retry_failed)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def append(
        self, custom_id: str, status: int, request_id: str, body: Any, error: Json | None = None
    ) -> None:
        """Writes one answer's line.

        Args:
            status: HTTP status of the answer.
            request_id: the request's name in the gateway's logs.
            body: the answer's JSON.
            error: why there is no answer; then there is no response either.
        """
        response = {"status_code": status, "request_id": request_id, "body": body}
        line = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": custom_id,
            "response": None if error else response,
            "error": error,
        }
        data = memoryview(_encoded(line))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AnswersError(f"{self._path}: another process writes it") from None

    def _continue(self, retry_failed: bool) -> set[str]:
        """Reads what is there and leaves the file at the end of its last whole line."""
        done: set[str] = set()
        kept = bytearray()
        end = 0
        dropped = False
        with open(self._descriptor, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # Torn: its writer was killed.
                end += len(line)
                answer = self._parse(number, line)
                if retry_failed and not _succeeded(answer):
                    dropped = True
                    continue
                done.add(answer["custom_id"])
                if retry_failed:
                    kept += line
        if dropped:
            end = self._rewrite(bytes(kept))
        os.ftruncate(self._descriptor, end)
        os.lseek(self._descriptor, end, os.SEEK_SET)
        return done

    def _parse(self, number: int, line: bytes) -> Json:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("custom_id"), str):
            raise AnswersError(f"{self._path}: line {number} is no answer; name another file, or mend it")
        return answer

    def _rewrite(self, data: bytes) -> int:
        """Puts a file with fewer lines in this one's place, whole or not at all."""
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}.part")
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
        os.replace(part, self._path)
        os.close(self._descriptor)
        self._descriptor = descriptor
        return len(data)


def _encoded(line: Json) -> bytes:
    try:
        return (json.dumps(line, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        # Half a pair of surrogates: JSON can write it, UTF-8 cannot.
        return (json.dumps(line) + "\n").encode()


def _succeeded(answer: Json) -> bool:
    response = answer.get("response")
    return isinstance(response, dict) and response.get("status_code") == _OK
