"""Steps that only decode: their padding, their rows, and on a GPU their recordings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llm_service.engine.batch import ScheduledSequence
from llm_service.engine.messages import SamplingSettings, StoppingSettings
from llm_service.engine.sequence import Sequence
from llm_service.runner.attention.context import AttentionBackend
from llm_service.runner.attention.triton_paged import TritonBackend
from llm_service.runner.cuda_graphs import DecodeBody, can_capture
from llm_service.runner.decode_rows import DecodeRows, only_decodes, padded_size, padded_sizes
from llm_service.runner.kv_cache import KvCache
from llm_service.runner.sampling.sampler import is_plain
from tests.unit.runner.conftest import Tinies, Tiny
from tests.unit.runner.driver import BLOCK_SIZE, GREEDY, Driver
from tests.unit.runner.paged_scene import DEVICE

CPU = torch.device("cpu")
PROMPTS = ([5, 6, 7, 8, 9], [11, 12], [21, 22, 23, 24, 25, 26, 27, 28, 29])


def test_sizes_grow_by_eights_and_end_at_the_most() -> None:
    assert padded_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert padded_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert padded_sizes(8) == [1, 2, 4, 8]
    assert padded_sizes(3) == [1, 2, 3]
    assert padded_sizes(1) == [1]


@pytest.mark.parametrize("most", [1, 3, 8, 17, 64])
def test_every_count_has_the_least_size_that_holds_it(most: int) -> None:
    sizes = padded_sizes(most)
    for count in range(1, most + 1):
        size = padded_size(count, sizes)
        assert size >= count
        assert not [smaller for smaller in sizes if count <= smaller < size]


def test_only_cuda_and_kernels_that_read_lengths_are_recorded() -> None:
    class Reference:
        name = "sdpa"

    backend: AttentionBackend = TritonBackend(1)
    assert can_capture(torch.device("cuda"), backend)
    assert not can_capture(CPU, backend)
    assert not can_capture(torch.device("cuda"), Reference())  # type: ignore[arg-type]


def decoding(tiny: Tiny, prompts: tuple[list[int], ...] = PROMPTS) -> list[Sequence]:
    """Sequences whose prompt and first token are there."""
    sequences = [tiny.driver.add(prompt) for prompt in prompts]
    tiny.driver.generate(sequences, 1)
    return sequences


def items_of(sequences: list[Sequence]) -> list[ScheduledSequence]:
    """The next token of each; the blocks are grown for it."""
    items = []
    for sequence in sequences:
        start = len(sequence.token_ids) - 1
        while len(sequence.block_table) * BLOCK_SIZE <= start:
            sequence.block_table.append(77)
        items.append(ScheduledSequence(sequence, start, 1, True))
    return items


def test_prompts_and_chunks_are_no_decoding(tiny: Tiny) -> None:
    first, second, _ = items_of(decoding(tiny))
    assert only_decodes([first, second])
    assert not only_decodes([first, ScheduledSequence(second.sequence, 0, 2, False)])
    assert not only_decodes([ScheduledSequence(first.sequence, len(PROMPTS[0]) - 1, 1, True)])


class TestRows:
    """What `DecodeRows` puts where."""

    @pytest.fixture
    def rows(self) -> DecodeRows:
        return DecodeRows(4, 64, BLOCK_SIZE, scratch_block=99, axes=3, device=CPU)

    def test_rows_hold_each_sequence_and_the_rest_is_scratch(self, rows: DecodeRows, tiny: Tiny) -> None:
        sequences = decoding(tiny)
        rows.fill(items_of(sequences), 4)
        shape = rows.shape(4)
        assert rows.token_ids(4).tolist() == [*(sequence.token_ids[-1] for sequence in sequences), 0]
        assert shape.lengths.tolist() == [6, 3, 10, 1]
        assert shape.lengths.dtype == torch.int32
        for row, sequence in enumerate(sequences):
            table = sequence.block_table
            assert shape.block_tables[row, : len(table)].tolist() == table
            start = len(sequence.token_ids) - 1
            assert shape.slots[row] == table[start // BLOCK_SIZE] * BLOCK_SIZE + start % BLOCK_SIZE
            assert rows.positions(4)[:, row].tolist() == [sequence.next_position] * 3
        assert shape.slots[3] == 99 * BLOCK_SIZE
        assert shape.block_tables[3, 0] == 99
        assert rows.positions(4)[:, 3].tolist() == [0] * 3

    def test_a_row_follows_its_sequence_and_its_successors(self, rows: DecodeRows, tiny: Tiny) -> None:
        first, second, third = decoding(tiny)
        for batch in ([first, second, third], [third, first], [second], [first, second, third]):
            for sequence in batch:
                sequence.block_table.append(50 + len(sequence.block_table))
            rows.fill(items_of(batch), 4)
            tables = rows.shape(4).block_tables
            for row, sequence in enumerate(batch):
                assert tables[row, : len(sequence.block_table)].tolist() == sequence.block_table
            assert (tables[len(batch) :, 0] == 99).all()

    def test_a_table_that_was_given_up_and_filled_again_is_written_anew(
        self, rows: DecodeRows, tiny: Tiny
    ) -> None:
        (sequence, *_) = decoding(tiny)
        rows.fill(items_of([sequence]), 1)
        sequence.block_table[:] = [block + 1 for block in sequence.block_table]
        rows.fill(items_of([sequence]), 1)
        assert rows.shape(1).block_tables[0, : len(sequence.block_table)].tolist() == sequence.block_table


class Watch(TorchDispatchMode):
    """Fails when an operation gives a value or a shape that depends on values to the host."""

    READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert not any(name in str(func) for name in self.READS), f"{func} reads values on the host"
        return func(*args, **(kwargs or {}))


class WatchedBackend:
    """The Triton backend, whose interpreter may read what it likes."""

    name = "triton"

    def __init__(self) -> None:
        self._backend = TritonBackend(4)

    def plan(self, cache: KvCache, shape):  # type: ignore[no-untyped-def]
        step = self._backend.plan(cache, shape)

        class Step:
            def attend(self, *arguments: object) -> torch.Tensor:
                with torch._C._DisableTorchDispatch():
                    return step.attend(*arguments)  # type: ignore[arg-type]

        return Step()


@pytest.fixture(scope="module")
def torch_driver(tinies: Tinies) -> Iterator[Driver]:
    """A driver of Hugging Face's modeling code, which is what is recorded."""
    yield Driver(tinies("qwen2_5_vl").checkpoint, kernels="torch")


@pytest.mark.skipif(DEVICE.type == "cuda", reason="on a GPU the recording itself is tested")
def test_the_recorded_part_reads_nothing_on_the_host_and_gives_the_same_tokens(
    tinies: Tinies, torch_driver: Driver
) -> None:
    """What a recording would replay, run directly, with Triton's kernels interpreted."""
    tiny = tinies("qwen2_5_vl")
    driver = torch_driver
    runner = driver.runner
    model = runner._model
    sequences = [driver.add(prompt) for prompt in PROMPTS]
    driver.generate(sequences, 1)
    pool = runner._cache
    cache = KvCache(model.kv_layout, pool.block_count, BLOCK_SIZE, torch.float32, CPU, with_scratch=True)
    for layer, (keys, values) in enumerate(zip(pool.keys, pool.values, strict=True)):
        cache.keys[layer][:-1], cache.values[layer][:-1] = keys, values
    assert cache.scratch_block == pool.block_count
    rows = DecodeRows(4, 64, BLOCK_SIZE, cache.scratch_block, 3, CPU)
    body = DecodeBody(model, cache, WatchedBackend(), rows, 4)
    found: list[list[int]] = []
    for _ in range(4):
        items = [driver._schedule(sequence, 1) for sequence in sequences]
        rows.fill(items, 4)
        with torch.inference_mode(), Watch():
            step = body.run(4)
        found.append(step.ids[:3].tolist())
        expected = {token.sequence_id: token.token_id for token in driver.step([(s, 1) for s in sequences])}
        assert found[-1] == [expected[sequence.sequence_id] for sequence in sequences]
    assert len({tuple(ids) for ids in found}) > 1, "the tiny model says the same at every step"
    assert tiny.checkpoint is driver.checkpoint


def test_plain_greedy_is_told_from_all_else(tiny: Tiny) -> None:
    assert is_plain(tiny.driver.add(PROMPTS[0]))
    for sampling in (
        SamplingSettings(temperature=0.5),
        SamplingSettings(top_logprobs=0),
        SamplingSettings(logit_bias={1: 2.0}),
        SamplingSettings(repetition_penalty=1.1),
        SamplingSettings(presence_penalty=0.1),
    ):
        assert not is_plain(tiny.driver.add(PROMPTS[0], sampling=sampling))
    stopping = StoppingSettings(max_token_count=9, min_token_count=1, stop_token_ids=[3])
    assert not is_plain(tiny.driver.add(PROMPTS[0], sampling=GREEDY, stopping=stopping))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
class TestRecordings:
    """On a GPU: recordings give the tokens of eager steps."""

    @pytest.fixture(scope="class")
    def drivers(self, tinies: Tinies) -> tuple[Driver, Driver]:
        checkpoint = tinies("qwen2_5_vl").checkpoint
        changes: dict[str, object] = {"device": "cuda", "max_num_seqs": 12, "block_size": BLOCK_SIZE}
        eager = Driver(checkpoint, enforce_eager=True, **changes)
        return Driver(checkpoint, **changes), eager

    @pytest.mark.parametrize("count", [1, 2, 3, 8, 11])
    def test_tokens_equal_eager_steps(self, drivers: tuple[Driver, Driver], count: int) -> None:
        recorded, eager = drivers
        assert recorded.runner._graphs is not None
        assert eager.runner._graphs is None
        prompts = [[3 + index, 7, 9 + 2 * index, *range(20, 20 + index)] for index in range(count)]
        answers = [
            driver.generate([driver.add(prompt) for prompt in prompts], 40) for driver in (recorded, eager)
        ]
        assert answers[0] == answers[1]

    def test_tokens_equal_the_reference_on_the_cpu(
        self, drivers: tuple[Driver, Driver], tinies: Tinies
    ) -> None:
        prompts = [[5, 6, 7, 8, 9], [11, 12]]
        answers = [
            driver.generate([driver.add(prompt) for prompt in prompts], 20)
            for driver in (drivers[0], tinies("qwen2_5_vl").driver)
        ]
        assert answers[0] == answers[1]

    def test_random_choice_uses_the_recorded_logits(self, drivers: tuple[Driver, Driver]) -> None:
        sampling = SamplingSettings(temperature=0.9, seed=4, top_p=0.95)
        answers = [
            driver.generate([driver.add(list(PROMPTS[0]), sampling=sampling)], 30) for driver in drivers
        ]
        assert answers[0] == answers[1]

    def test_pictures_reach_the_device(self, drivers: tuple[Driver, Driver], tinies: Tinies) -> None:
        tiny = tinies("qwen2_5_vl")
        prompt = tiny.prompt(2, "which is larger?")
        for driver in drivers:
            driver.rows.items.update(tiny.driver.rows.items)
            sequences = [driver.add(prompt, ["p0", "p2"])]
            (answer,) = driver.generate(sequences, 12, chunk=7)
            assert answer == tiny.expected(prompt, [0, 2], 12)
