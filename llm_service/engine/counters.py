"""What the engine has done since its start, for its status.

Knows numbers and the process's resident memory. Decides nothing by them.
"""

from __future__ import annotations

import os
import time

from llm_service.engine.batch import ScheduledBatch
from llm_service.engine.block_manager import BlockManager
from llm_service.engine.messages import EngineStatus
from llm_service.engine.scheduler import Scheduler

_MEMORY_INTERVAL_S = 1.0


def resident_byte_count() -> int:
    """Resident memory of this process, in bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Counters:
    """Counters of steps and tokens; the scheduler keeps its own."""

    def __init__(self) -> None:
        self.prompt_token_count = 0
        self.generated_token_count = 0
        self.item_row_count = 0
        self._step_count = 0
        self._step_seconds = 0.0
        self._resident = resident_byte_count()
        self._measured_at = time.monotonic()

    def count_step(self, seconds: float) -> None:
        """Notes a step and how long it took."""
        self._step_count += 1
        self._step_seconds += seconds

    def count_rows(self, batch: ScheduledBatch) -> None:
        """Notes the rows of items that a step has computed."""
        self.item_row_count += sum(
            item.sequence.item_rows_between(item.start, item.start + item.count) for item in batch.items
        )

    def status(self, scheduler: Scheduler, blocks: BlockManager) -> EngineStatus:
        """Everything in one message; memory is measured once a second at most."""
        if time.monotonic() - self._measured_at > _MEMORY_INTERVAL_S:
            self._resident, self._measured_at = resident_byte_count(), time.monotonic()
        return EngineStatus(
            running_sequence_count=scheduler.running_count,
            waiting_sequence_count=scheduler.waiting_count,
            used_block_count=blocks.used_count,
            block_count=blocks.block_count,
            prefix_query_token_count=scheduler.prefix_query_count,
            prefix_hit_token_count=scheduler.prefix_hit_count,
            preemption_count=scheduler.preemption_count,
            prompt_token_count=self.prompt_token_count,
            item_row_count=self.item_row_count,
            generated_token_count=self.generated_token_count,
            step_count=self._step_count,
            step_seconds=self._step_seconds,
            resident_byte_count=self._resident,
        )
