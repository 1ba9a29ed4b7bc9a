"""One request and its record: whatever goes wrong is written down.

Knows what a request can end with. Does not know when it is due.
"""

from __future__ import annotations

import asyncio
import time

from percept.bench.answer import AnswerReader
from percept.bench.bodies import Prepared
from percept.bench.connection import BrokenConnectionError, Connections
from percept.bench.records import RequestRecord


class Asker:
    """Sends requests over one set of connections and times them on one clock."""

    def __init__(self, connections: Connections, timeout_s: float) -> None:
        self._connections = connections
        self._timeout_s = timeout_s
        self._start = time.perf_counter()

    def now(self) -> float:
        """Seconds after the start of the clock."""
        return time.perf_counter() - self._start

    async def ask(self, prepared: Prepared, due_s: float | None = None) -> RequestRecord:
        """Sends one request and waits for its end.

        Args:
            prepared: what is sent.
            due_s: when it was due; now where None.
        """
        sent_s = self.now()
        reader = AnswerReader()
        broken = await self._post(prepared.body, reader)
        record = RequestRecord(
            index=prepared.index,
            kind=prepared.kind,
            scheduled_s=round(sent_s if due_s is None else due_s, 6),
            sent_s=round(sent_s, 6),
            end_s=round(self._end(reader, broken), 6),
            delta_times_s=[round(each - self._start, 6) for each in reader.delta_times],
            input_tokens=reader.tokens("prompt_tokens"),
            output_tokens=reader.tokens("completion_tokens"),
            cached_tokens=reader.cached_tokens,
            finish_reason=reader.finish_reason,
            status=reader.status or None,
            error=reader.verdict(broken),
        )
        return record

    def _end(self, reader: AnswerReader, broken: str | None) -> float:
        return self.now() if broken or not reader.end_time else reader.end_time - self._start

    async def _post(self, body: bytes, reader: AnswerReader) -> str | None:
        """Says why there is no whole answer; None where there is one."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._connections.post(body, reader)
        except TimeoutError:
            return f"timeout after {self._timeout_s:g} s"
        except BrokenConnectionError as error:
            return str(error)
        except OSError as error:
            return f"no connection: {error}"
        return None
