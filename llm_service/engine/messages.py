"""What the LLM service's front and its engine process say to each other.

Knows the messages. Does not know how they travel (`frames`), who sends them or what they lead to.

Times are seconds of the machine's monotonic clock, which both processes share.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llm_service.engine.times_wish import TokenTimesWish
from shared.families.token_rules import NO_RULES, TokenRules

DataType = Literal["float32", "float16", "bfloat16"]


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that the engine process must know, as JSON on its command line.

    Attributes:
        model: local checkpoint folder.
        model_parts: folders where the repositories of its parts are looked for first.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto", "float32", "bfloat16" or "float16".
        threads: CPU threads for computing, or None for the library's choice.
        max_model_len: longest sequence in tokens, or None for the checkpoint's.
        max_num_seqs: most sequences in one step.
        max_num_batched_tokens: most tokens in one step.
        block_size: KV slots in a block.
        kv_cache_gib: size of the KV cache in GiB, or None to measure (CUDA) or take a default (CPU).
        gpu_memory_utilization: share of the GPU's memory that may be in use.
        enable_prefix_caching: reuse blocks of equal content.
        enforce_eager: record no CUDA graphs.
        log_level: name of a level of the logging module.
        shared_cores: file of the table through which services share cores.
        kernels: "auto": our own on the CPU where they fit the model; "torch": never.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 1024
    block_size: int = 16
    kv_cache_gib: float | None = None
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    log_level: str = "info"
    kernels: Literal["auto", "torch"] = "auto"
    shared_cores: str | None = None
    model_parts: tuple[str, ...] = ()


class SamplingSettings(msgspec.Struct, frozen=True):
    """How tokens are chosen; every field is resolved, none left to a default of the model.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus mass, above 0 to 1.
        top_k: 0 for all tokens.
        min_p: least probability relative to the likeliest, 0 to 1.
        seed: makes the choice repeatable, or None.
        presence_penalty: subtracted once from each generated token's logit.
        frequency_penalty: subtracted per occurrence among generated tokens.
        repetition_penalty: divides or multiplies logits of tokens seen in prompt or output; 1 is none.
        logit_bias: added to the logits, by token id.
        top_logprobs: None for no log probabilities, else how many alternatives.
        allowed_token_ids: the only ones that may be chosen; all where there are none.
        rules: which tokens may be chosen, as the family says.
        measured: tell how sure the model is of what it writes; see `TokenReport`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    top_logprobs: int | None = None
    allowed_token_ids: list[int] = []
    rules: TokenRules = NO_RULES
    measured: bool = False


class StoppingSettings(msgspec.Struct, frozen=True):
    """When a sequence ends. Stop strings are the front's.

    Attributes:
        max_token_count: most tokens to generate, at least 1.
        min_token_count: fewest tokens before one of `stop_token_ids` may be chosen, which is masked so long.
        stop_token_ids: end a sequence with "stop"; the end-of-sequence ids are
            among them unless they are to be ignored.
    """

    max_token_count: int
    min_token_count: int = 0
    stop_token_ids: list[int] = []


class SpanMessage(msgspec.Struct, frozen=True):
    """A run of placeholder tokens that rows of one item fill.

    Attributes:
        key: content key of the item; several spans may have the same.
        start: first position in the expanded prompt.
        length: number of rows.
        splittable: False where the span's tokens see each other in both directions,
            so that no prefill chunk may cut it.
        first_row: the item's row that fills the first position.
        tail: tokens behind the rows that are computed in the same step as they are; only
            where the span is not splittable.
    """

    key: str
    start: int
    length: int
    splittable: bool = True
    first_row: int = 0
    tail: int = 0

    @property
    def whole_end(self) -> int:
        """The first token behind all that no chunk may cut apart."""
        return self.start + self.length + self.tail


class AddSequence(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: a prompt whose layout is known, to be continued.

    Attributes:
        sequence_id: chosen by the front, never used twice.
        token_ids: int32 little-endian, the expanded prompt.
        positions: int32 little-endian, row-major (axes, tokens).
        axes: 1, or 3 for M-RoPE.
        next_position: position of the first generated token on every axis.
        spans: in order, not overlapping.
        arrival: when the request came; older ones go first.
        variant: which set of weights computes it; see `ExpandedPrompt`.
        token_times: set where the end is to tell when tokens are heard.
        tokens_may_wait: tokens between the first and the last may be told late, together;
            see `pending_report`.
    """

    sequence_id: int
    token_ids: bytes
    positions: bytes
    axes: int
    next_position: int
    spans: list[SpanMessage]
    sampling: SamplingSettings
    stopping: StoppingSettings
    arrival: float
    variant: str = ""
    token_times: TokenTimesWish | None = None
    tokens_may_wait: bool = False


class ArenaTensor(msgspec.Struct, frozen=True):
    """One tensor of an item: dense, row-major, in the shared arena.

    Attributes:
        name: "embeds" for the main one.
        data_type: element type, little-endian.
        shape: (rows, width).
        offset: first byte in the arena.
    """

    name: str
    data_type: DataType
    shape: tuple[int, int]
    offset: int


class OpenEmbeddings(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: an item's place in the arena. No row is there yet."""

    key: str
    tensors: list[ArenaTensor]


class EmbeddingRowsReady(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: the first `row_count` rows of every tensor of the item are there."""

    key: str
    row_count: int


class CloseEmbeddings(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: read the item no more, and say so with `EmbeddingsClosed`.

    Sequences that still need rows of it ask again with `RowsNeeded`.
    """

    key: str


class CancelSequence(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: let go of a sequence. An unknown id (it has just ended) is no error."""

    sequence_id: int


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: end the process."""


class Ping(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: answer with `Pong` before the next step."""


class Pong(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: the step before this message has returned."""


class LoadProgress(msgspec.Struct, tag=True, frozen=True):
    """Engine to front, before `EngineReady`: how far loading is, 0 to 1, and what it does."""

    fraction: float
    text: str


class EngineReady(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: warm, sequences may come.

    Attributes:
        block_count: KV blocks in the pool.
        block_size: slots in a block.
        max_model_len: longest sequence in tokens, prompt and answer; the
            setting's or the checkpoint's, and never more than the pool holds.
        resident_byte_count: resident memory of the engine process.
    """

    block_count: int
    block_size: int
    max_model_len: int
    resident_byte_count: int


class PrefillReport(msgspec.Struct, frozen=True):
    """Told with a sequence's first token.

    Attributes:
        cached_token_count: prompt tokens that the prefix cache served.
        queue_seconds: from arrival to the first scheduled step.
        prefill_seconds: from the first scheduled step to the first token.
    """

    cached_token_count: int
    queue_seconds: float
    prefill_seconds: float


class TokenReport(msgspec.Struct, frozen=True):
    """One new token of one sequence.

    Attributes:
        finish: set with the last token of a sequence.
        stop_token_id: the token itself, where it is what stopped the sequence.
        logprob: of the token, in the model's raw distribution, when asked for.
        top: the likeliest alternatives with their log probabilities.
        first: set with the sequence's first token.
        token_seconds: set with the last token where they were asked for: when each generated
            token is heard; None where they could not be told.
        allowed_logprob: where measured, of the token among those that may be chosen.
        silence: where measured, raw probability of the rules' `silence_id`, with the first token.
    """

    sequence_id: int
    token_id: int
    finish: Literal["stop", "length"] | None = None
    stop_token_id: int | None = None
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None
    first: PrefillReport | None = None
    token_seconds: list[float] | None = None
    allowed_logprob: float | None = None
    silence: float | None = None


class RowsUsed(msgspec.Struct, frozen=True):
    """The place where a sequence next needs rows of `key` has changed.

    Mostly as its prefill has passed one; a preemption may undo that.

    Attributes:
        next_span: index of the span that needs the item next; None where the
            sequence needs it no more.
    """

    sequence_id: int
    key: str
    next_span: int | None = None


class EngineStatus(msgspec.Struct, frozen=True):
    """Load now, and counters since the start of the process."""

    running_sequence_count: int
    waiting_sequence_count: int
    used_block_count: int
    block_count: int
    prefix_query_token_count: int
    prefix_hit_token_count: int
    preemption_count: int
    prompt_token_count: int
    generated_token_count: int
    step_count: int
    step_seconds: float
    resident_byte_count: int
    item_row_count: int = 0


class StepReport(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: what a step gave; also sent when only `ended` has news.

    Attributes:
        tokens: in order; of a sequence whose tokens may wait, those of several steps.
        ended: every sequence that the engine has let go of since the last
            report, whatever the reason; each id once in its life.
        used: items that sequences need no more.
    """

    tokens: list[TokenReport]
    ended: list[int]
    used: list[RowsUsed]
    status: EngineStatus


class RowsNeeded(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: the sequence needs rows of items that are not open.

    Sent when a sequence is added, and again for items that were closed or whose
    blocks were lost before they were used.
    """

    sequence_id: int
    keys: list[str]


class EmbeddingsClosed(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: no step reads the item's region any more; it may be freed."""

    key: str


class SequenceRefused(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: the sequence can never run; the caller is to blame. It counts as ended.

    Attributes:
        reason: "context_length": longer than `EngineReady.max_model_len`
            leaves room for; "span_length": an item that no chunk may cut has
            more rows than a step has tokens.
        text: for the caller.
    """

    sequence_id: int
    reason: Literal["context_length", "span_length"]
    text: str


class LoadFailed(msgspec.Struct, tag=True, frozen=True):
    """Engine to front, instead of `EngineReady`: why it cannot start; the process then ends.

    `text` is for whoever started the service: a setting or the checkpoint is to blame.
    """

    text: str


class SequenceFailed(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: a bug of ours in one sequence, for the log. It counts as ended."""

    sequence_id: int
    text: str


ToEngine = (
    AddSequence | OpenEmbeddings | EmbeddingRowsReady | CloseEmbeddings | CancelSequence | Ping | Shutdown
)
ToFront = (
    LoadProgress
    | LoadFailed
    | EngineReady
    | StepReport
    | RowsNeeded
    | EmbeddingsClosed
    | SequenceRefused
    | SequenceFailed
    | Pong
)
