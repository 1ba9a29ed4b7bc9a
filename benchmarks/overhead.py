"""`python -m benchmarks.overhead`: what gateway and gRPC add to a text request over the engine in process.

Prompts of equal length, each new to every cache: through the HTTP gateway, whole and
streamed, over one connection that is kept alive; and by the engine with its runner in
this process, its inputs made beforehand. All compute on one thread, in two orders.

In a row: some requests one after the other, then as many runs of the engine here, and
so on. The overhead is the difference of the two medians of a block. So services work
that have a client, and an engine that has a caller.

By turns: each request right after the engine here has run one, which leaves its weights
in the caches and the services asleep. The overhead is the difference of the two. It says
what the first request after a pause pays.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.chat_client import Answer, ChatClient, words
from benchmarks.running import BUNDLED, Parts, Services
from benchmarks.summary import percentile, report_arguments, spread, write_report
from llm_service.engine.engine import Engine
from llm_service.engine.messages import (
    AddSequence,
    EngineSettings,
    SamplingSettings,
    StepReport,
    StoppingSettings,
)
from llm_service.laid_out_prompt import LaidOutPrompt
from protos.llm.v1 import llm_service_pb2, llm_service_pb2_grpc
from shared.checkpoint import find_checkpoint
from shared.embedding_arena import EmbeddingArena
from shared.families import load_family

WARM_TURNS = 20
"""Turns that are not counted."""

BLOCK = 10
"""Requests in a row."""

_ARENA_BYTES = 1024 * 1024
_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question and its tokens."""

    text: str
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Pair:
    """A run of the engine in this process, and the request after it.

    Attributes:
        first_s: seconds to the first token of the run.
        last_s: seconds to its last one.
    """

    first_s: float
    last_s: float
    answer: Answer


class EngineInProcess:
    """The engine without services around it."""

    def __init__(self, model: Path) -> None:
        from llm_service.runner.load import load_runner

        settings = EngineSettings(str(model), device="cpu", threads=1, max_model_len=1024, kv_cache_gib=0.125)
        runner = load_runner(settings, lambda fraction, text: None)
        runner.warm_up()
        self._engine = Engine(
            runner,
            EmbeddingArena.create(_ARENA_BYTES),
            block_count=runner.block_count,
            block_size=settings.block_size,
            max_model_len=1024,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
        )
        self._layout = load_family(find_checkpoint(str(model))).prompt_layout()
        self._last_id = 0

    def sequence(self, token_ids: list[int], token_count: int) -> AddSequence:
        """The engine's input for a prompt."""
        self._last_id += 1
        laid_out = LaidOutPrompt.of(self._layout.expand(token_ids, []), [])
        stopping = StoppingSettings(max_token_count=token_count)
        return laid_out.sequence(self._last_id, SamplingSettings(), stopping, time.monotonic())

    def seconds(self, message: AddSequence) -> tuple[float, float]:
        """Runs a sequence to its end. Returns seconds to the first and to the last token."""
        begin = time.perf_counter()
        self._engine.receive(message)
        first = 0.0
        while True:
            self._engine.step()
            reports = [report for report in self._engine.take_messages() if isinstance(report, StepReport)]
            if not first and any(report.tokens for report in reports):
                first = time.perf_counter() - begin
            if any(report.ended for report in reports):
                return first, time.perf_counter() - begin


def measure(
    model: Path = BUNDLED, *, repeats: int = 200, word_count: int = 48, token_count: int = 16
) -> dict[str, Any]:
    """Returns milliseconds of overhead, whole and streamed, and what they come of."""
    parts = Parts(
        model, {"threads": 1}, {"workers": 1, "cache-gib": 0}, {"kv-cache-gib": 0.125, "max-model-len": 1024}
    )
    engine = EngineInProcess(model)
    turns: list[dict[bool, Pair]] = []
    blocks: list[dict[bool, float]] = []
    with Services(parts) as services:
        prompts = _prompts(services, WARM_TURNS + repeats, word_count)
        client = ChatClient(services.gateway)
        for turn in range(repeats + WARM_TURNS):
            turns.append(_one_turn(engine, client, prompts[turn], token_count, whole_first=bool(turn % 2)))
            if turn % 50 == 49:
                print(f"overhead: {turn + 1} of {repeats + WARM_TURNS}", flush=True)
        for _ in range(2 + repeats // BLOCK):
            rows = [prompt for pair in _prompts(services, 3 * BLOCK // 2, word_count) for prompt in pair]
            blocks.append(_one_block(engine, client, rows, token_count))
        client.close()
    return _in_a_row(blocks[2:]) | _by_turns(turns[WARM_TURNS:]) | {"tokens": token_count}


def _prompts(services: Services, count: int, word_count: int) -> list[list[Prompt]]:
    """Two prompts for each turn, such as no cache has seen."""
    numbers = [next(_NUMBERS) for _ in range(count)]
    with grpc.insecure_channel(services.llm, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = llm_service_pb2_grpc.LlmServiceStub(channel)
        return [
            [_prompt(stub, f"{turn} {name} {words(turn, word_count)}") for name in ("one", "two")]
            for turn in numbers
        ]


def _prompt(stub: Any, text: str) -> Prompt:
    """A question with its tokens as the LLM service counts them."""
    conversation = llm_service_pb2.Conversation(
        messages=[llm_service_pb2.Message(role="user", parts=[llm_service_pb2.ContentPart(text=text)])]
    )
    request = llm_service_pb2.TokenizeRequest(conversation=conversation)
    return Prompt(text, list(stub.Tokenize(request, timeout=10).token_ids))


def _one_turn(
    engine: EngineInProcess, client: ChatClient, prompts: list[Prompt], count: int, *, whole_first: bool
) -> dict[bool, Pair]:
    """A pair for each way: by whether it is streamed."""
    pairs: dict[bool, Pair] = {}
    for prompt, stream in zip(prompts, (False, True) if whole_first else (True, False), strict=True):
        first, last = engine.seconds(engine.sequence(prompt.token_ids, count))
        pairs[stream] = Pair(first, last, client.ask(prompt.text, count, stream=stream))
    return pairs


def _one_block(
    engine: EngineInProcess, client: ChatClient, prompts: list[Prompt], count: int
) -> dict[bool, float]:
    """Medians of requests in a row, by whether they are streamed, over that of runs in a row; seconds."""
    third = len(prompts) // 3
    asked = {
        stream: [client.ask(prompt.text, count, stream=stream).whole_s for prompt in some]
        for stream, some in ((False, prompts[:third]), (True, prompts[third : 2 * third]))
    }
    messages = [engine.sequence(prompt.token_ids, count) for prompt in prompts[2 * third :]]
    runs = statistics.median([engine.seconds(message)[1] for message in messages])
    return {stream: statistics.median(seconds) - runs for stream, seconds in asked.items()}


def _in_a_row(blocks: list[dict[bool, float]]) -> dict[str, Any]:
    return {
        "overhead_ms": spread([1e3 * block[False] for block in blocks]),
        "streamed_overhead_ms": spread([1e3 * block[True] for block in blocks]),
    }


def _by_turns(turns: list[dict[bool, Pair]]) -> dict[str, Any]:
    whole = [1e3 * (turn[False].answer.whole_s - turn[False].last_s) for turn in turns]
    streamed = [1e3 * (turn[True].answer.whole_s - turn[True].last_s) for turn in turns]
    first = [1e3 * (turn[True].answer.first_s - turn[True].first_s) for turn in turns]
    engine = [1e3 * pair.last_s for turn in turns for pair in turn.values()]
    return {
        "after_a_pause_ms": spread(whole),
        "after_a_pause_p90_ms": round(percentile(whole, 90), 3),
        "streamed_after_a_pause_ms": spread(streamed),
        "first_token_after_a_pause_ms": spread(first),
        "engine_ms": spread(engine),
    }


def main() -> int:
    """Measures and prints; always 0."""
    parser = report_arguments("overhead", __doc__)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer")
    chosen = parser.parse_args()
    write_report(measure(chosen.model, repeats=chosen.repeats, token_count=chosen.tokens), chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
