"""Models, health, version, metrics, the schema and the process around them."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.scripted_services import ScriptedLlm, running_stack, start_llm, until

QUESTION = {"messages": [{"role": "user", "content": "Hi"}]}
PICTURE = {"type": "image_url", "image_url": {"url": "data:;base64," + base64.b64encode(b"a").decode()}}


async def test_models() -> None:
    async with running_stack() as stack:
        client = openai.AsyncOpenAI(base_url=stack.base_url, api_key="key", max_retries=0)
        models = [model async for model in client.models.list()]
        assert [model.id for model in models] == ["tiny", "org/tiny"]
        assert models[0].created == 1_700_000_000
        assert (await client.models.retrieve("org/tiny")).owned_by == "percept"


async def test_a_model_says_what_it_takes() -> None:
    async with running_stack(limit_mm_per_prompt={"image": 2}) as stack, httpx.AsyncClient() as http:
        model = (await http.get(stack.base_url + "/models/tiny")).json()
        assert (model["family"], model["max_model_len"]) == ("qwen2_vl", 512)
        # The lower of the two limits counts, the gateway's and the LLM service's.
        assert model["modalities"] == {"image": 2}
        assert model["embeddings"]["image"]["required"] == ["image_embeds", "image_grid_thw"]
        assert set(model["settings"]["image"]) >= {"min_pixels", "max_pixels"}


async def test_own_names() -> None:
    async with running_stack(served_model_name=("mine", "also-mine")) as stack:
        client = openai.AsyncOpenAI(base_url=stack.base_url, api_key="key", max_retries=0)
        assert [model.id async for model in client.models.list()] == ["mine", "also-mine"]
        answer = await client.chat.completions.create(model="also-mine", **QUESTION)
        assert answer.model == "also-mine"


async def test_health_says_what_is_missing() -> None:
    async with running_stack() as stack, httpx.AsyncClient() as http:
        answer = await http.get(stack.url + "/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")
        assert (await http.post(stack.url + "/ping")).status_code == 200
        await stack.kill(stack.encoders[0].address)
        await until(lambda: not stack.gateway.encoders.serving)
        answer = await http.get(stack.url + "/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["missing"] == ["encoder"]
        await stack.kill(stack.llms[0].address)
        await until(lambda: not stack.gateway.llms.serving)
        answer = await http.get(stack.url + "/health")
        assert (answer.status_code, answer.json()["missing"]) == (503, ["llm", "encoder"])


async def test_request_id_is_echoed_or_made() -> None:
    async with running_stack() as stack, httpx.AsyncClient() as http:
        answer = await http.get(stack.url + "/version", headers={"X-Request-Id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.json()["version"]
        for bad in ("", "a b", "x" * 129):
            answer = await http.get(stack.url + "/version", headers={"X-Request-Id": bad})
            assert answer.headers["x-request-id"] not in ("", bad)
        await http.post(
            stack.base_url + "/chat/completions", json=QUESTION, headers={"X-Request-Id": "mine-2"}
        )
        assert stack.llms[0].requests[0].request_id == "mine-2"


async def samples(http: httpx.AsyncClient, url: str) -> dict[tuple[str, str], float]:
    """Sample values by name and by the label that tells samples of one name apart."""
    text = (await http.get(url + "/metrics")).text
    return {
        (sample.name, sample.labels.get("stage", sample.labels.get("finished_reason", ""))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def test_metrics() -> None:
    async with running_stack() as stack, httpx.AsyncClient() as http:
        body = {"messages": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What?"}]}]}
        for _ in range(2):
            assert (await http.post(stack.base_url + "/chat/completions", json=body)).status_code == 200
        await http.post(stack.base_url + "/chat/completions", json={**QUESTION, "foo": 1})
        found = await samples(http, stack.url)
        assert found["percept:request_success_total", "stop"] == 2
        assert found["percept:time_to_first_token_seconds_count", ""] == 2
        assert found["percept:inter_token_latency_seconds_count", ""] == 4
        assert found["percept:request_prompt_tokens_sum", ""] == 20
        assert found["percept:request_generation_tokens_sum", ""] == 6
        assert found["percept:kv_cache_usage_perc", ""] == 0.25
        assert found["percept:generation_tokens_total", ""] == 7
        assert found["percept:mm_cache_queries_total", ""] == 5
        assert found["percept:num_requests_in_gateway", ""] == 0
        for stage, seconds in {"decode": 0.02, "encode": 0.03, "transfer": 0.04}.items():
            assert found["percept:stage_seconds_count", stage] == 1
            assert found["percept:stage_seconds_sum", stage] == seconds
        assert found["percept:stage_seconds_count", "prefill"] == 2
        assert found["percept:request_images_sum", ""] == 2
        assert found["percept:request_videos_sum", ""] == 0


async def test_schema_describes_the_routes() -> None:
    async with running_stack() as stack, httpx.AsyncClient() as http:
        schema = (await http.get(stack.url + "/openapi.json")).json()
        assert {"/v1/chat/completions", "/v1/models", "/v1/models/{name}", "/health"} <= set(schema["paths"])
        operation = schema["paths"]["/v1/chat/completions"]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert resolve(schema, body)["required"] == ["messages"]
        assert {"200", "400", "401", "404", "413", "415", "429", "503", "504"} <= set(operation["responses"])


def resolve(schema: dict[str, object], part: dict[str, object]) -> dict[str, object]:
    found: object = part
    while isinstance(found, dict) and "$ref" in found:
        target: object = schema
        for step in str(found["$ref"]).removeprefix("#/").split("/"):
            assert isinstance(target, dict)
            target = target[step]
        found = target
    assert isinstance(found, dict)
    return found


PROGRAM = """
import asyncio, sys
from gateway.service import serve
from gateway.settings import GatewaySettings
asyncio.run(serve(GatewaySettings(listen="127.0.0.1:0", llm=(sys.argv[1],))))
assert not {"torch", "transformers", "numpy"} & set(sys.modules), "heavy modules were imported"
"""


async def test_process_ends_cleanly_on_sigterm_with_an_answer_under_way() -> None:
    llm = ScriptedLlm(pause_s=0.3)
    server = await start_llm(llm)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        llm.address,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while b"listens on http://" not in (line := await process.stderr.readline()):
            assert line, "the gateway ended early"
    url = line.decode().rpartition(" on ")[2].strip()
    async with httpx.AsyncClient(timeout=10) as http:
        asking = asyncio.create_task(http.post(url + "/chat/completions", json=QUESTION))
        await until(lambda: llm.running == 1)
        process.send_signal(signal.SIGTERM)
        assert (await asking).status_code == 200
    rest = await process.stderr.read()
    assert await process.wait() == 0, rest.decode()
    assert b"Traceback" not in rest
    assert b"answers under way may take up to 15 s; a second signal ends them at once" in rest
    await server.drain(0)
