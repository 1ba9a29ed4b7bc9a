"""Loading, sizing and what one bad sequence may do to the others."""

from __future__ import annotations

from pathlib import Path

import msgspec
import psutil
import pytest
import torch

from llm_service.engine.batch import ScheduledBatch
from llm_service.engine.messages import SamplingSettings
from llm_service.runner import kv_size
from llm_service.runner.available_memory import available_byte_count
from llm_service.runner.kv_cache import KvCache, block_byte_count
from llm_service.runner.kv_size import GIB, count_blocks
from llm_service.runner.load import choose_device, load_runner
from llm_service.runner.rehearsal import run_largest
from shared.errors import InvalidRequestError
from shared.families.base import EncodedItem, KvLayout, RawTensor
from tests.unit.runner.conftest import Tinies, Tiny
from tests.unit.runner.driver import Driver, settings_for

CPU = torch.device("cpu")
LAYOUT = KvLayout(layer_count=2, kv_head_count=3, head_dim=8)


def no_profile() -> None:
    raise AssertionError("the CPU's memory is not measured")


def test_pool_fills_the_budget() -> None:
    settings = settings_for(Path("anywhere"), kv_cache_gib=0.001, max_model_len=8)
    size = block_byte_count(LAYOUT, 4, torch.bfloat16)
    assert size == 2 * 2 * 4 * 3 * 8 * 2
    assert count_blocks(LAYOUT, settings, torch.bfloat16, CPU, no_profile) == int(0.001 * GIB) // size


@pytest.mark.parametrize(
    ("available", "max_model_len", "expected"),
    [(8 * GIB, 8, 0.8 * GIB), (400 * GIB, 8, 4 * GIB), (GIB // 4, 500_000, 0.1789 * GIB)],
    ids=["a tenth", "at most 4 GiB", "at least one sequence"],
)
def test_pool_takes_a_share_of_the_memory_on_cpu(
    available: int, max_model_len: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_size, "available_byte_count", lambda: available)
    settings = settings_for(Path("anywhere"), kv_cache_gib=None, max_model_len=max_model_len)
    size = block_byte_count(LAYOUT, 4, torch.float32)
    got = count_blocks(LAYOUT, settings, torch.float32, CPU, no_profile) * size
    assert got == pytest.approx(expected, rel=0.001)


def test_a_sequence_that_the_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_size, "available_byte_count", lambda: GIB // 8)
    settings = settings_for(Path("anywhere"), kv_cache_gib=None, max_model_len=500_000)
    with pytest.raises(InvalidRequestError, match="lower --max-model-len"):
        count_blocks(LAYOUT, settings, torch.float32, CPU, no_profile)


def test_a_pool_that_does_not_fit_into_memory_is_refused() -> None:
    settings = settings_for(Path("anywhere"), kv_cache_gib=1e6)
    with pytest.raises(InvalidRequestError, match=r"--kv-cache-gib 1e\+06 does not fit: .* available on cpu"):
        count_blocks(LAYOUT, settings, torch.float32, CPU, no_profile)


@pytest.mark.parametrize(
    ("limit_file", "use_file"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_a_control_group_limits_the_memory(tmp_path: Path, limit_file: str, use_file: str) -> None:
    machine = available_byte_count(tmp_path)
    assert machine > 1 << 20
    group = tmp_path / "sys/fs/cgroup"
    (group / limit_file).parent.mkdir(parents=True)
    (group / use_file).write_text("3000\n")
    (group / limit_file).write_text("10000\n")
    assert available_byte_count(tmp_path) == 7000
    (group / limit_file).write_text("max\n")
    assert available_byte_count(tmp_path) > 1 << 20


def test_pool_too_small_for_one_sequence_is_refused() -> None:
    settings = settings_for(Path("anywhere"), kv_cache_gib=0.0001, max_model_len=100_000)
    with pytest.raises(InvalidRequestError, match="raise --kv-cache-gib"):
        count_blocks(LAYOUT, settings, torch.float32, CPU, no_profile)


def test_pool_on_cpu_takes_memory_as_blocks_are_used() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    cache = KvCache(LAYOUT, 300_000, 4, torch.float32, CPU)
    assert cache.byte_count > 200 << 20
    assert process.memory_info().rss - before < 20 << 20
    assert (cache.keys[1][299_999] == 0).all()
    cache.values[0][:75_000] = 1.0
    assert process.memory_info().rss - before > 20 << 20


def test_loading_tells_its_progress(tinies: Tinies) -> None:
    told: list[tuple[float, str]] = []
    folder = tinies("llava").checkpoint.folder
    runner = load_runner(settings_for(folder), lambda fraction, text: told.append((fraction, text)))
    runner.warm_up()
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert runner.context_length == 2048
    assert runner.block_count > 1000


@pytest.mark.parametrize(("tokens", "sequences"), [(1024, 32), (7, 32), (100, 1)])
def test_largest_step_runs(tinies: Tinies, tokens: int, sequences: int) -> None:
    """What measures a GPU's memory is an ordinary step."""
    driver = Driver(tinies("qwen2_vl").checkpoint, max_num_batched_tokens=tokens, max_num_seqs=sequences)
    run_largest(driver.runner, driver.settings, 3)


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        assert choose_device("cuda").type == "cuda"
    else:
        assert choose_device("auto").type == "cpu"
        with pytest.raises(InvalidRequestError, match="no CUDA device"):
            choose_device("cuda")


def test_an_empty_batch_is_no_step(tiny: Tiny) -> None:
    assert tiny.driver.runner.run(ScheduledBatch(), tiny.driver.rows) == []


def test_a_step_without_a_last_token_samples_nothing(tiny: Tiny) -> None:
    sequence = tiny.driver.add(tiny.prompt(0, "tell me something"))
    assert tiny.driver.step([(sequence, 3)]) == []


def test_bad_rows_fail_their_sequence_alone_and_leave_no_trace(tiny: Tiny) -> None:
    """A picture that overflows: its neighbour goes on, and the next owner of its blocks too."""
    driver = tiny.driver
    good = driver.rows.items["p0"]
    raw = good.tensors["embeds"]
    broken = RawTensor(raw.data_type, raw.shape, torch.full(raw.shape, float("nan")).numpy().tobytes())
    driver.rows.items["broken"] = EncodedItem(good.info, {"embeds": broken})
    prompt = tiny.prompt(1, "what is this?")
    expected = tiny.expected(prompt, [0], 6)

    bad, neighbour = driver.add(prompt, ["broken"]), driver.add(prompt, ["p0"])
    tokens = driver.step([(bad, 1000), (neighbour, 1000)])
    assert [token.failure is None for token in tokens] == [False, True]
    driver.free.extend(bad.block_table)
    prompt_of_heir = tiny.prompt(0, "hello")
    heir = driver.add(prompt_of_heir)
    assert driver.generate([heir, neighbour], 6) == [tiny.expected(prompt_of_heir, [], 6), expected]
    assert heir.block_table[0] == bad.block_table[-1]


def test_random_choice_repeats_with_its_seed(tinies: Tinies) -> None:
    """Alone and in one piece, or among others and in chunks."""
    tiny = tinies("qwen2_5_vl")
    prompt = tiny.prompt(1, "what is this?")
    sampling = SamplingSettings(temperature=1.0, top_p=0.95, seed=5)
    alone = tiny.driver.generate([tiny.driver.add(prompt, ["p0"], sampling)], 8)[0]
    others = [tiny.driver.add(prompt, ["p1"], msgspec.structs.replace(sampling, seed=None)) for _ in range(3)]
    among = tiny.driver.add(prompt, ["p0"], sampling)
    assert tiny.driver.generate([*others, among], 8, 6)[-1] == alone
    assert alone != tiny.expected(prompt, [0], 8)


def test_logits_are_computed_for_sampling_rows_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.driver.runner._model
    seen: list[int] = []
    original = model.logits

    def count(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape[0])
        return original(hidden)

    monkeypatch.setattr(model, "logits", count)
    whole, part = (tiny.driver.add(tiny.prompt(0, "tell me something")) for _ in range(2))
    tiny.driver.step([(whole, 1000), (part, 4)])
    assert seen == [1]


def test_half_precision_is_near_the_whole(tinies: Tinies) -> None:
    """bfloat16 weights, cache and rows' conversion: the same distribution, roughly."""
    tiny = tinies("qwen2_vl")
    half = Driver(tiny.checkpoint, dtype="bfloat16")
    half.rows = tiny.driver.rows
    prompt = tiny.prompt(1, "what is this?")
    reported: list[dict[int, float]] = []
    for driver in (tiny.driver, half):
        sequence = driver.add(prompt, ["p0"], SamplingSettings(top_logprobs=200))
        (token,) = driver.step([(sequence, 1000)])
        assert token.top is not None
        reported.append(dict(token.top))
    exact, rounded = reported
    common = exact.keys() & rounded.keys()
    assert len(common) > 190
    assert max(abs(exact[token] - rounded[token]) for token in list(exact)[:20] if token in common) < 0.3
