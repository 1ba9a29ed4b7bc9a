"""The load generator: what it asks, when it asks, what it measured.

As a library:

    target = Target("http://127.0.0.1:8000/v1")
    result = await run_load(target, Workload(prompt_tokens=256), Load.closed(4, requests=32))
    summary = summarise(result, Slo(ttft_ms=500))

`percept bench` is the same with a terminal around it. Knows the OpenAI API as any
client does, and imports no service.
"""

from percept.bench.load import Load
from percept.bench.probe import BenchError
from percept.bench.records import GeneratorCost, RequestRecord, RunResult
from percept.bench.results_file import read_result, to_json, write_result
from percept.bench.run import Progress, run_load
from percept.bench.statistics import Distribution, percentile
from percept.bench.summary import Goodput, GroupSummary, Slo, Summary, summarise
from percept.bench.target import Target
from percept.bench.workload import Workload

__all__ = [
    "BenchError",
    "Distribution",
    "GeneratorCost",
    "Goodput",
    "GroupSummary",
    "Load",
    "Progress",
    "RequestRecord",
    "RunResult",
    "Slo",
    "Summary",
    "Target",
    "Workload",
    "percentile",
    "read_result",
    "run_load",
    "summarise",
    "to_json",
    "write_result",
]
