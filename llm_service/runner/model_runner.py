"""One step: a scheduled batch in, one token per sampling sequence out.

Knows the order of a step: inputs, embeddings, forward, logits, sampling. Does
not decide what is in a batch and keeps nothing about a sequence but what the
sampler needs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from llm_service.engine.batch import RowSource, SampledToken, ScheduledBatch, ScheduledSequence
from llm_service.engine.messages import EngineSettings
from llm_service.engine.sequence import Sequence
from llm_service.runner.attention.context import AttentionBackend, AttentionContext
from llm_service.runner.attention.registration import CONTEXT_KEYWORD
from llm_service.runner.cuda_graphs import DecodeGraphs
from llm_service.runner.decode_rows import only_decodes
from llm_service.runner.embeddings import RowPlacer
from llm_service.runner.extra_rows import ExtraRows
from llm_service.runner.inputs import InputBuffers, StepInputs
from llm_service.runner.kv_cache import KvCache
from llm_service.runner.rehearsal import run_smallest
from llm_service.runner.row_runs import RowRuns, are_plain, switch_length
from llm_service.runner.sampling.sampler import Sampler, is_plain, sampled_tokens
from llm_service.runner.sequence_states import SequenceStates
from llm_service.runner.step_sequences import StepSequences
from llm_service.runner.token_times import TokenTimes
from shared.families.base import LanguageModel


class ModelRunner:
    """Computes the steps of one language model.

    Attributes:
        block_count: blocks of the KV pool.
        context_length: positions that the checkpoint was configured for.
        max_held: most sequences that may hold blocks at a time; None: any number.
        shares_prefixes: sequences may share blocks of equal content.
        switch_length: tokens beyond which a sequence must be computed anew, or None;
            see `ChoosesByRow`.
    """

    def __init__(
        self,
        model: LanguageModel,
        cache: KvCache,
        backend: AttentionBackend,
        settings: EngineSettings,
        *,
        axes: int,
        context_length: int,
    ) -> None:
        """Owns the step's buffers; the parts are made by `load_runner`.

        Args:
            axes: rows of the model's positions, 1 or 3.
        """
        self._model = model
        self._cache = cache
        self._backend = backend
        self._settings = settings
        self._axes = axes
        self._sampler = Sampler()
        self.block_count = cache.block_count
        self.context_length = context_length
        self.switch_length = switch_length(model)
        dtype, device = cache.keys[0].dtype, cache.keys[0].device
        longest = settings.max_model_len or context_length
        self._max_blocks = -(-longest // cache.block_size)
        self._graphs: DecodeGraphs | None = None
        self._buffers = InputBuffers(
            max_tokens=settings.max_num_batched_tokens,
            max_sequences=settings.max_num_seqs,
            max_blocks=self._max_blocks,
            block_size=cache.block_size,
            axes=axes,
            device=device,
        )
        size = (settings.max_num_batched_tokens, model.hidden_size)
        self._inputs_embeds = torch.zeros(size, dtype=dtype, device=device)
        self._row_placer = RowPlacer(*size, device)
        self._extra_rows = ExtraRows(model.extra_widths, size[0], dtype, device)
        self._states = SequenceStates(model.state_shapes, settings.max_num_seqs, dtype, device)
        self._row_runs = RowRuns(model)
        self._step_sequences = StepSequences(model)
        self._times = TokenTimes(model, cache)
        self.max_held = self._states.capacity
        self.shares_prefixes = not model.state_shapes

    @torch.inference_mode()
    def run(self, batch: ScheduledBatch, rows: RowSource) -> list[SampledToken]:
        """Computes keys and values of all parts; one token for each item that samples, in order."""
        self._states.drop(batch.preempted)
        if not batch.items:
            return []
        if self._graphs is not None and only_decodes(batch.items) and are_plain(batch.items):
            return self._replay(self._graphs, batch.items)
        step = self._buffers.fill(batch)
        hidden = self._forward(step, rows)
        self._times.keep(step.items)
        sampling = [item.sequence for item in step.items if item.samples]
        tokens: dict[int, SampledToken] = {}
        if sampling:
            logits = self._model.logits(hidden.index_select(0, step.sampled))
            tokens = {token.sequence_id: token for token in self._sampler.sample(logits, sampling)}
        self._states.keep(step.items)
        return [tokens[item.sequence.sequence_id] for item in batch.items if item.samples]

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence. Unknown ids are no error."""
        self._sampler.forget(sequence_id)
        self._states.drop([sequence_id])
        self._times.forget(sequence_id)

    @torch.inference_mode()
    def token_seconds(self, sequence: Sequence) -> list[float]:
        """When each generated token of a sequence that has ended is heard; see `TokenTimes.seconds`."""
        return self._times.seconds(sequence)

    def warm_up(self) -> None:
        """Computes two small steps, so that the first request does not pay for first uses."""
        run_smallest(self, self._settings, self._axes)

    @torch.inference_mode()
    def capture_graphs(self, progress: Callable[[float], None], most: int | None = None) -> None:
        """Records the steps that only decode, to be replayed from now on; for CUDA.

        Args:
            progress: takes the fraction that is done.
            most: how many batch sizes to record, from the largest down; all by default.
        """
        graphs = DecodeGraphs(
            self._model,
            self._cache,
            self._backend,
            max_sequences=self._settings.max_num_seqs,
            max_blocks=self._max_blocks,
            axes=self._axes,
        )
        graphs.capture(progress, most)
        self._graphs = graphs

    def _replay(self, graphs: DecodeGraphs, items: list[ScheduledSequence]) -> list[SampledToken]:
        """A recorded step; where all are plainly greedy, their tokens are in it too."""
        sequences = [item.sequence for item in items]
        step = graphs.replay(items)
        if all(map(is_plain, sequences)):
            return sampled_tokens(sequences, graphs.read_ids(step))
        return self._sampler.sample(step.logits, sequences)

    def _forward(self, step: StepInputs, rows: RowSource) -> torch.Tensor:
        """Final hidden states, (tokens, hidden)."""
        embeds = self._inputs_embeds[: len(step.token_ids)]
        embeds.copy_(self._model.embed(step.token_ids))
        self._row_placer.place(embeds, step.items, step.rows, rows)
        extras = self._extra_rows.place(len(embeds), step.items, step.rows, rows)
        if len(step.fresh_blocks):
            self._cache.clear(step.fresh_blocks)
        plan = self._backend.plan(self._cache, step.shape)
        context = AttentionContext(self._cache, step.shape.slots, plan, step.shape)
        states = self._states.begin(step.items, step.shape.decode_count)
        runs = self._row_runs.keywords(step.items, step.rows)
        sequences = self._step_sequences.keywords(step.items, step.rows)
        more = {**extras, **states, **runs, **sequences}
        return self._model.forward(embeds, step.positions, **{CONTEXT_KEYWORD: context}, **more)
