"""The engine: takes messages in, runs steps, and gives messages out.

Knows the order of things: receive, schedule, run, settle, report. Decides
nothing itself (that is `scheduler`), computes nothing (that is the runner) and
does not know how messages travel.

Messages are received between steps only, so that nothing is read from an item
once it is closed, and a cancelled sequence is gone at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from llm_service.engine.batch import Runner, SampledToken, ScheduledBatch
from llm_service.engine.block_manager import BlockManager
from llm_service.engine.counters import Counters
from llm_service.engine.embedding_rows import Arena, EmbeddingRows
from llm_service.engine.messages import (
    AddSequence,
    CancelSequence,
    CloseEmbeddings,
    EmbeddingRowsReady,
    EmbeddingsClosed,
    EngineStatus,
    OpenEmbeddings,
    Ping,
    Pong,
    PrefillReport,
    SequenceFailed,
    SequenceRefused,
    StepReport,
    ToEngine,
    ToFront,
    TokenReport,
)
from llm_service.engine.pending_report import PendingReport
from llm_service.engine.scheduler import Scheduler
from llm_service.engine.sequence import Sequence

MAX_FAILED_STEPS = 3
"""Steps in a row of which nothing came: then the runner is broken, not a sequence."""

REST_FACTOR = 1.5
MAX_REST_S = 0.1
"""Where encoders work on the same cores for sequences that wait, a decoding step is followed by a rest of
so many times its length. A decoding step reads all weights for a few tokens: fewer of them, each for more
sequences, leave the encoders the cores, and the answers that wait for them come sooner. Whatever arrives
ends the rest."""

logger = logging.getLogger(__name__)


class RunnerBrokenError(Exception):
    """Several steps in a row failed for every sequence; only a new process helps."""


class Engine:
    """All sequences of one model, step by step.

    Attributes:
        max_model_len: longest sequence in tokens, never more than the pool holds.
        rest_s: how long the next step should wait for a message, in seconds,
            where the cores are shared with encoders; see `REST_FACTOR`.
    """

    def __init__(
        self,
        runner: Runner,
        arena: Arena,
        *,
        block_count: int,
        block_size: int,
        max_model_len: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_held: int | None = None,
        enable_prefix_caching: bool = True,
        rests_for_encoders: bool = False,
        switch_length: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._rests = rests_for_encoders
        self.rest_s = 0.0
        self._rows = EmbeddingRows(arena)
        self._blocks = BlockManager(block_count, block_size, caching=enable_prefix_caching)
        self._scheduler = Scheduler(
            self._blocks,
            self._rows,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_held=max_held,
        )
        self._max_chunk = max_num_batched_tokens
        self._switch_length = switch_length
        self.max_model_len = min(max_model_len, block_count * block_size)
        self._counters = Counters()
        self._failed_step_count = 0
        self._busy = False
        self._outbox: list[ToFront] = []
        self._news = PendingReport()

    @property
    def busy(self) -> bool:
        """Whether another step is worth trying before the next message has come."""
        return self._busy

    def receive(self, message: ToEngine) -> None:
        """Takes one message in; answers come with `take_messages`."""
        match message:
            case AddSequence():
                self._add(message)
            case OpenEmbeddings():
                self._rows.open(message.key, message.tensors)
            case EmbeddingRowsReady():
                self._rows.set_ready(message.key, message.row_count)
            case CloseEmbeddings():
                self._close(message.key)
            case CancelSequence():
                if message.sequence_id in self._scheduler:
                    self._end(message.sequence_id)
            case Ping():
                self._outbox.append(Pong())

    def step(self) -> bool:
        """Runs one step, if any sequence can go on, and says whether one ran.

        Raises:
            RunnerBrokenError: nothing comes of any step any more.
        """
        batch = self._scheduler.schedule()
        self.rest_s = 0.0
        if batch.items:
            self._run(batch)
        ran = bool(batch.items)
        news = self._news.take(self._scheduler.needs.take_used(), self._clock(), ran=ran)
        if news is not None:
            self._outbox.append(StepReport(*news, self.status()))
        self._busy = ran and len(self._scheduler) > 0
        return ran

    def take_messages(self) -> list[ToFront]:
        """The messages to the front since the last call, in order."""
        messages, self._outbox = [*self._outbox, *self._scheduler.needs.take_needed()], []
        return messages

    def status(self) -> EngineStatus:
        """Load and counters as of now."""
        return self._counters.status(self._scheduler, self._blocks)

    def check_integrity(self) -> None:
        """Asserts that every block has the holders that the books say; an idle pool has none."""
        self._scheduler.check_integrity()
        if not len(self._scheduler):
            assert self._blocks.used_count == 0, "blocks are held though there is no sequence"

    # Messages.

    def _add(self, message: AddSequence) -> None:
        try:
            if message.sequence_id in self._scheduler:
                raise ValueError("the sequence is there already")
            sequence = Sequence(message, self._switch_length)
        except ValueError as error:
            logger.error("sequence %d is malformed: %s", message.sequence_id, error)
            self._outbox.append(SequenceFailed(message.sequence_id, str(error)))
            self._news.ended(message.sequence_id)
            return
        refusal = self._refusal(sequence)
        if refusal is not None:
            self._outbox.append(refusal)
            self._news.ended(message.sequence_id)
            return
        self._scheduler.add(sequence)

    def _refusal(self, sequence: Sequence) -> SequenceRefused | None:
        """Says why a sequence could never run, or None."""
        if sequence.prompt_length >= self.max_model_len:
            text = (
                f"This model's maximum context length is {self.max_model_len} tokens. However, the prompt "
                f"has {sequence.prompt_length} tokens, which leaves no room for an answer."
            )
            return SequenceRefused(sequence.sequence_id, "context_length", text)
        spans = [span for span in sequence.spans if not span.splittable]
        longest = max((span.whole_end - span.start for span in spans), default=0)
        if longest > self._max_chunk:
            text = (
                f"{longest} tokens of the prompt, an item's rows among them, must be computed together, more "
                f"than max_num_batched_tokens ({self._max_chunk}) allows."
            )
            return SequenceRefused(sequence.sequence_id, "span_length", text)
        return None

    def _close(self, key: str) -> None:
        self._rows.close(key)
        self._outbox.append(EmbeddingsClosed(key))
        self._scheduler.reopen(key)

    def _end(self, sequence_id: int) -> None:
        """Lets go of a sequence, whatever the reason."""
        self._scheduler.remove(sequence_id)
        self._runner.forget(sequence_id)
        self._news.ended(sequence_id)

    # Steps.

    def _run(self, batch: ScheduledBatch) -> None:
        started = self._clock()
        for item in batch.items:
            if item.sequence.scheduled_at is None:
                item.sequence.scheduled_at = started
        try:
            tokens = self._runner.run(batch, self._rows)
        except Exception:
            logger.exception("a step of %d sequences failed; trying them one by one", len(batch.items))
            self._run_apart(batch)
        else:
            self._failed_step_count = 0
            self._settle(batch, tokens)
        seconds = self._clock() - started
        self._counters.count_step(seconds)
        if self._rests and batch.decodes_only and self._scheduler.awaits_rows:
            self.rest_s = min(MAX_REST_S, REST_FACTOR * seconds)

    def _run_apart(self, batch: ScheduledBatch) -> None:
        """Runs each sequence of a failed batch alone, and fails those that fail again."""
        successes = 0
        for item in batch.items:
            alone = ScheduledBatch([item])
            try:
                tokens = self._runner.run(alone, self._rows)
            except Exception as error:
                logger.exception("sequence %d failed", item.sequence.sequence_id)
                self._fail(item.sequence.sequence_id, f"{type(error).__name__}: {error}")
            else:
                successes += 1
                self._settle(alone, tokens)
        self._failed_step_count = 0 if successes else self._failed_step_count + 1
        if self._failed_step_count >= MAX_FAILED_STEPS:
            raise RunnerBrokenError(f"{self._failed_step_count} steps in a row failed")

    def _settle(self, batch: ScheduledBatch, tokens: list[SampledToken]) -> None:
        """Books what ran; a sequence that got no token ends, and its last blocks are not kept."""
        sampling = {item.sequence.sequence_id: item.sequence for item in batch.items if item.samples}
        assert sampling.keys() == {token.sequence_id for token in tokens}, "tokens of other sequences"
        failures = {token.sequence_id: token.failure for token in tokens if token.failure is not None}
        for sequence_id, text in failures.items():
            self._fail(sequence_id, text)
        good = [token for token in tokens if token.failure is None]
        items = [item for item in batch.items if item.sequence.sequence_id not in failures]
        booked = ScheduledBatch(items)
        self._counters.count_rows(booked)
        self._scheduler.settle(booked, good)
        now = self._clock()
        for token in good:
            sequence = sampling[token.sequence_id]
            self._news.token(self._token_report(sequence, token, now), now, may_wait=sequence.tokens_may_wait)

    def _fail(self, sequence_id: int, text: str) -> None:
        self._outbox.append(SequenceFailed(sequence_id, text))
        self._end(sequence_id)

    def _token_report(self, sequence: Sequence, token: SampledToken, now: float) -> TokenReport:
        """Reports a token that has just been booked, and ends its sequence if it was the last."""
        finish = sequence.finish_reason(self.max_model_len)
        first = self._prefill_report(sequence, now) if sequence.output_count == 1 else None
        self._counters.generated_token_count += 1
        seconds = self._token_seconds(sequence) if finish is not None else None
        if finish is not None:
            self._end(sequence.sequence_id)
        return TokenReport(
            token.sequence_id,
            token.token_id,
            finish=finish,
            stop_token_id=token.token_id if finish == "stop" else None,
            logprob=token.logprob,
            allowed_logprob=token.allowed_logprob,
            silence=token.silence,
            top=token.top,
            first=first,
            token_seconds=seconds,
        )

    def _token_seconds(self, sequence: Sequence) -> list[float] | None:
        """None where nobody asked, and where the runner has a bug: then the front says so."""
        if sequence.token_times is None:
            return None
        try:
            return self._runner.token_seconds(sequence)
        except Exception:
            logger.exception("times of sequence %d", sequence.sequence_id)
            return None

    def _prefill_report(self, sequence: Sequence, now: float) -> PrefillReport:
        assert sequence.scheduled_at is not None and sequence.cached_count is not None
        self._counters.prompt_token_count += sequence.prompt_length
        return PrefillReport(
            cached_token_count=sequence.cached_count,
            queue_seconds=max(0.0, sequence.scheduled_at - sequence.arrival),
            prefill_seconds=now - sequence.scheduled_at,
        )
