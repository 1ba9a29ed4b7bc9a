"""Every malformed request gets a 4xx in OpenAI's shape, and the next one succeeds."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import httpx
import openai
import pytest

from gateway.addresses import IpAddress
from tests.integration.scripted_services import Stack, running_stack, until

B64 = base64.b64encode(b"\x89PNG picture").decode()
DATA_URL = f"data:image/png;base64,{B64}"


def part(url: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def content(*parts: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def text(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "Hi"}], **fields}


def message(**fields: object) -> dict[str, object]:
    return {"messages": [fields]}


URL_PARAM = "messages[0].content[0].image_url"

REFUSED: list[tuple[str, dict[str, object], int, str | None]] = [
    # Fields.
    ("unknown field", text(foo=1), 400, "foo"),
    ("unknown model", text(model="gpt"), 404, "model"),
    ("no messages", {}, 400, "messages"),
    ("empty messages", {"messages": []}, 400, "messages"),
    ("messages no list", {"messages": "Hi"}, 400, "messages"),
    ("message no object", {"messages": ["Hi"]}, 400, "messages[0]"),
    ("unknown role", message(role="robot", content="Hi"), 400, "messages[0].role"),
    ("tool role", message(role="tool", content="Hi"), 400, "messages[0].role"),
    ("no role", message(content="Hi"), 400, "messages[0].role"),
    ("unknown message field", message(role="user", content="Hi", foo=1), 400, "messages[0].foo"),
    ("null content", message(role="user", content=None), 400, "messages[0].content"),
    ("number content", message(role="user", content=5), 400, "messages[0].content"),
    ("null assistant", message(role="assistant", content=None), 400, "messages[0].content"),
    ("tool calls", message(role="assistant", content="a", tool_calls=[{}]), 400, "messages[0].tool_calls"),
    ("tools", text(tools=[{"type": "function"}]), 400, "tools"),
    ("tool choice", text(tool_choice="required"), 400, "tool_choice"),
    ("json format", text(response_format={"type": "json_object"}), 400, "response_format"),
    ("structured", text(structured_outputs={"regex": "a"}), 400, "structured_outputs"),
    ("guided", text(guided_json={"type": "object"}), 400, "guided_json"),
    ("bad words", text(bad_words=["a"]), 400, "bad_words"),
    ("audio", text(audio={"voice": "a"}), 400, "audio"),
    ("modalities", text(modalities=["text", "audio"]), 400, "modalities"),
    ("prediction", text(prediction={"type": "content"}), 400, "prediction"),
    ("web search", text(web_search_options={"a": 1}), 400, "web_search_options"),
    ("effort", text(reasoning_effort="high"), 400, "reasoning_effort"),
    ("template", text(chat_template="{{ x }}"), 400, "chat_template"),
    ("template fields", text(chat_template_kwargs={"a": 1}), 400, "chat_template_kwargs"),
    ("processor", text(mm_processor_kwargs={"max_pixels": 1}), 400, "mm_processor_kwargs"),
    ("media io", text(media_io_kwargs={"video": {"backend": "x"}}), 400, "media_io_kwargs.video.backend"),
    (
        "no frames",
        text(media_io_kwargs={"video": {"num_frames": 0}}),
        400,
        "media_io_kwargs.video.num_frames",
    ),
    (
        "half a frame",
        text(media_io_kwargs={"video": {"num_frames": 1.5}}),
        400,
        "media_io_kwargs.video.num_frames",
    ),
    (
        "image io",
        text(media_io_kwargs={"image": {"image_mode": None}}),
        400,
        "media_io_kwargs.image.image_mode",
    ),
    ("prompt logprobs", text(prompt_logprobs=1), 400, "prompt_logprobs"),
    ("logprob ids", text(logprob_token_ids=[1]), 400, "logprob_token_ids"),
    ("priority", text(priority=3), 400, "priority"),
    ("beam search", text(use_beam_search=True), 400, "use_beam_search"),
    # Values.
    ("hot", text(temperature=2.1), 400, "temperature"),
    ("text temperature", text(temperature="1"), 400, "temperature"),
    ("true temperature", text(temperature=True), 400, "temperature"),
    ("top_p zero", text(top_p=0), 400, "top_p"),
    ("top_k", text(top_k=-2), 400, "top_k"),
    ("min_p", text(min_p=1.5), 400, "min_p"),
    ("penalty", text(presence_penalty=-3), 400, "presence_penalty"),
    ("repetition", text(repetition_penalty=0), 400, "repetition_penalty"),
    ("seed", text(seed=2**63), 400, "seed"),
    ("n zero", text(n=0), 400, "n"),
    ("n many", text(n=10_000), 400, "n"),
    ("n half", text(n=1.5), 400, "n"),
    ("max_tokens zero", text(max_tokens=0), 400, "max_tokens"),
    ("max_completion_tokens", text(max_completion_tokens=-1), 400, "max_completion_tokens"),
    ("min over max", text(min_tokens=5, max_tokens=4), 400, "min_tokens"),
    ("five stops", text(stop=list("abcde")), 400, "stop"),
    ("empty stop", text(stop=[""]), 400, "stop[0]"),
    ("stop number", text(stop=3), 400, "stop"),
    ("bias key", text(logit_bias={"a": 1}), 400, "logit_bias.a"),
    ("bias value", text(logit_bias={"1": 101}), 400, "logit_bias.1"),
    ("top_logprobs alone", text(top_logprobs=2), 400, "top_logprobs"),
    ("21 logprobs", text(logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    ("options alone", text(stream_options={"include_usage": True}), 400, "stream_options"),
    ("unknown option", text(stream=True, stream_options={"a": True}), 400, "stream_options.a"),
    ("stream text", text(stream="yes"), 400, "stream"),
    (
        "exclusive",
        text(continue_final_message=True, add_generation_prompt=True),
        400,
        "continue_final_message",
    ),
    ("long request id", text(request_id="x" * 129), 400, "request_id"),
    # Parts.
    ("no parts", content(), 400, "messages[0].content"),
    ("part number", content(5), 400, "messages[0].content[0]"),
    ("part null", content(None), 400, "messages[0].content[0]"),
    ("unknown part", content({"type": "hologram"}), 400, "messages[0].content[0].type"),
    ("typeless part", content({"foo": 1}), 400, "messages[0].content[0]"),
    ("type number", content({"type": 3}), 400, "messages[0].content[0].type"),
    ("type list", content({"type": []}), 400, "messages[0].content[0].type"),
    ("file part", content({"type": "file", "file": {}}), 400, "messages[0].content[0].type"),
    ("video", content({"video_url": {"url": "data:,a"}}), 400, "messages[0].content[0].video_url"),
    ("video rows", content({"video_embeds": {"a": "eA=="}}), 400, "messages[0].content[0].video_embeds"),
    (
        "audio without data",
        content({"type": "input_audio", "input_audio": {}}),
        400,
        "messages[0].content[0].input_audio.data",
    ),
    ("text number", content({"type": "text", "text": 5}), 400, "messages[0].content[0].text"),
    ("text missing", content({"type": "text"}), 400, "messages[0].content[0].text"),
    ("text extra", content({"type": "text", "text": "a", "foo": 1}), 400, "messages[0].content[0].foo"),
    ("cached uuid", content({"type": "image_url", "image_url": None, "uuid": "a"}), 400, URL_PARAM),
    ("url number", content(part(5)), 400, f"{URL_PARAM}.url"),
    (
        "url extra",
        content({"type": "image_url", "image_url": {"url": DATA_URL, "x": 1}}),
        400,
        f"{URL_PARAM}.x",
    ),
    ("detail", content({"image_url": {"url": DATA_URL, "detail": "ultra"}}), 400, f"{URL_PARAM}.detail"),
    ("detail list", content({"image_url": {"url": DATA_URL, "detail": []}}), 400, f"{URL_PARAM}.detail"),
    ("detail object", content({**part(DATA_URL), "detail": {}}), 400, "messages[0].content[0].detail"),
    ("long uuid", content({**part(DATA_URL), "uuid": "a" * 1_000_000}), 400, "messages[0].content[0].uuid"),
    ("nine pictures", content(*[part(DATA_URL)] * 9), 400, "image"),
    # Media.
    ("empty url", content(part("")), 400, URL_PARAM),
    ("bare path", content(part("/etc/passwd")), 400, URL_PARAM),
    ("ftp", content(part("ftp://127.0.0.1/a.png")), 400, URL_PARAM),
    ("no comma", content(part("data:image/png;base64")), 400, URL_PARAM),
    ("broken base64", content(part("data:image/png;base64,!!!!")), 400, URL_PARAM),
    ("bad padding", content(part("data:image/png;base64,abc")), 400, URL_PARAM),
    ("inner padding", content(part("data:image/png;base64,ab==abcd")), 400, URL_PARAM),
    ("empty data", content(part("data:image/png;base64,")), 400, URL_PARAM),
    ("non-ascii data", content(part("data:image/png;base64,äöüß")), 400, URL_PARAM),
    ("file, none allowed", content(part("file:///etc/passwd")), 400, URL_PARAM),
    ("loopback", content(part("http://127.0.0.1:9/a.png")), 400, URL_PARAM),
    ("loopback name", content(part("http://localhost:9/a.png")), 400, URL_PARAM),
    ("loopback 6", content(part("http://[::1]:9/a.png")), 400, URL_PARAM),
    ("mapped", content(part("http://[::ffff:127.0.0.1]:9/a.png")), 400, URL_PARAM),
    ("decimal", content(part("http://2130706433:9/a.png")), 400, URL_PARAM),
    ("octal", content(part("http://0177.0.0.1:9/a.png")), 400, URL_PARAM),
    ("short", content(part("http://127.1:9/a.png")), 400, URL_PARAM),
    ("any", content(part("http://0.0.0.0:9/a.png")), 400, URL_PARAM),
    ("link-local", content(part("http://169.254.169.254/latest/meta-data")), 400, URL_PARAM),
    ("private", content(part("http://10.0.0.1/a.png")), 400, URL_PARAM),
    ("userinfo", content(part("http://a:b@127.0.0.1:9/a.png")), 400, URL_PARAM),
    ("backslash", content(part("http://example.org\\@127.0.0.1:9/a.png")), 400, URL_PARAM),
    ("hostless", content(part("http:///a.png")), 400, URL_PARAM),
    ("odd port", content(part("http://127.0.0.1:99999/a.png")), 400, URL_PARAM),
    # Embeddings.
    ("embeds null", content({"type": "image_embeds", "image_embeds": None}), 400, None),
    ("embeds number", content({"type": "image_embeds", "image_embeds": 3}), 400, None),
    ("embeds empty", content({"type": "image_embeds", "image_embeds": {}}), 400, None),
    ("embeds broken", content({"type": "image_embeds", "image_embeds": "%%%"}), 400, None),
    ("embeds field", content({"type": "image_embeds", "image_embeds": {"image_embeds": 5}}), 400, None),
    ("embeds name", content({"type": "image_embeds", "image_embeds": {"x" * 65: B64}}), 400, None),
]


def check_shape(answer: httpx.Response) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, object] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert len(answer.content) < 2000
    return error


async def system_resolver(host: str, port: int) -> Sequence[IpAddress]:
    """As the system would for literals and loopback names; knows no other name."""
    literal = {"2130706433": "127.0.0.1", "0177.0.0.1": "127.0.0.1", "127.1": "127.0.0.1", "localhost": "::1"}
    try:
        return [ip_address(literal.get(host, host))]
    except ValueError:
        raise OSError("no such name") from None


async def test_every_malformed_request() -> None:
    async with running_stack(resolver=system_resolver) as stack, httpx.AsyncClient() as http:
        for name, body, status, param in REFUSED:
            answer = await http.post(stack.base_url + "/chat/completions", json=body)
            assert answer.status_code == status, (name, answer.text)
            error = check_shape(answer)
            assert error["type"] == "invalid_request_error", name
            if param is not None:
                assert error["param"] == param, (name, error)
            # A stream is refused alike, before it starts.
            if "stream_options" in body:
                continue
            streamed = await http.post(stack.base_url + "/chat/completions", json={"stream": True, **body})
            assert (streamed.status_code, streamed.json()) == (status, answer.json()), name
        assert stack.llms[0].requests == []
        answer = await http.post(stack.base_url + "/chat/completions", json=text())
        assert answer.status_code == 200


ACCEPTED: list[dict[str, object]] = [
    text(user="a", metadata={"a": "b"}, store=True, service_tier="auto", safety_identifier="a"),
    text(prompt_cache_key="a", parallel_tool_calls=True, request_id="mine", priority=0, session_id="s"),
    text(tools=[], tool_choice="auto", response_format={"type": "text"}, modalities=["text"], audio=None),
    text(n=None, stop=None, seed=None, temperature=None, top_p=None, stream=None, stream_options=None),
    text(chat_template=None, chat_template_kwargs={}, mm_processor_kwargs=None, skip_special_tokens=True),
    text(stop="a", logit_bias={}, top_logprobs=0, logprobs=False, min_tokens=0),
    text(continue_final_message=True),
    {
        "messages": [
            {"role": "system", "content": "a", "name": "x"},
            {"role": "system", "content": [{"type": "text", "text": "b"}]},
            {"role": "user", "content": ""},
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []},
            {"role": "assistant", "refusal": "No."},
            {"role": "user", "content": [{"text": "typeless"}, "plain"]},
        ]
    },
    content({"type": "image_url", "image_url": DATA_URL}),
    content({"type": "input_image", "image_url": DATA_URL, "detail": "low"}),
    content({"image_url": {"url": DATA_URL}}, {"type": "input_text", "text": "a"}),
    content({**part(DATA_URL), "uuid": "mine"}),
    content(part(DATA_URL.replace("data:", "DATA:"))),
    content(part(f"data:;base64,{B64}")),
    content(part("data:image/png;base64," + B64.replace("=", "%3D").replace("/", "%2F"))),
    content(part("data:image/png;base64," + "\n".join(B64))),
    content(part("data:image/svg+xml,%3Csvg/%3E")),
    content({"image_embeds": B64}),
]


@pytest.mark.parametrize("number", range(len(ACCEPTED)))
async def test_what_cannot_be_wrong_is_accepted(number: int) -> None:
    async with running_stack() as stack, httpx.AsyncClient() as http:
        answer = await http.post(stack.base_url + "/chat/completions", json=ACCEPTED[number])
        assert answer.status_code == 200, answer.text


async def test_bodies_that_are_no_json_object() -> None:
    bodies = [b"", b"{", b"nonsense", b"[]", b'"text"', b"null", b"[" * 100_000, b'{"a":' * 5000, b"\xff\xfe"]
    bodies += [b'{"messages": NaN}', b'{"messages": "\\ud800"}', b'{"seed": ' + b"9" * 10_000 + b"}"]
    async with running_stack() as stack, httpx.AsyncClient() as http:
        for body in bodies:
            answer = await http.post(
                stack.base_url + "/chat/completions",
                content=body,
                headers={"Content-Type": "application/json"},
            )
            assert answer.status_code == 400, body[:20]
            check_shape(answer)


async def test_content_types() -> None:
    async with running_stack() as stack, httpx.AsyncClient() as http:
        body = json.dumps(text()).encode()
        for kind, status in [
            ("application/json", 200),
            ("Application/JSON; charset=utf-8", 200),
            ("text/plain", 415),
            ("application/x-www-form-urlencoded", 415),
            ("", 415),
        ]:
            headers = {"Content-Type": kind} if kind else {}
            answer = await http.post(stack.base_url + "/chat/completions", content=body, headers=headers)
            assert answer.status_code == status, kind
        check_shape(answer)


async def stream_of(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 65536):
        yield b" " * 65536


async def test_bodies_over_the_limit() -> None:
    async with running_stack(max_body_mib=1.0) as stack, httpx.AsyncClient() as http:
        for body in (b" " * 3_000_000, stream_of(3_000_000)):
            answer = await http.post(
                stack.base_url + "/chat/completions",
                content=body,
                headers={"Content-Type": "application/json"},
            )
            assert answer.status_code == 413
            assert check_shape(answer)["code"] == "request_too_large"
        assert (await http.post(stack.base_url + "/chat/completions", json=text())).status_code == 200


async def test_bodies_over_the_limit_of_all_together() -> None:
    async with running_stack(max_held_mib=0.5) as stack, httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(
            stack.base_url + "/chat/completions", json=message(role="user", content="x" * 1_000_000)
        )
        assert answer.status_code == 429
        check_shape(answer)
        for _ in range(3):
            answer = await http.post(
                stack.base_url + "/chat/completions", json=message(role="user", content="x" * 400_000)
            )
            assert answer.status_code == 200


async def test_slow_body_has_a_deadline() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(3)
        yield b"}"

    async with running_stack(request_timeout_s=0.3) as stack, httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(
            stack.base_url + "/chat/completions", content=slow(), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 504
        check_shape(answer)


async def test_media_over_the_limit() -> None:
    async with running_stack(max_media_mib=0.001) as stack, httpx.AsyncClient() as http:
        large = base64.b64encode(b"x" * 2000).decode()
        for url in (f"data:image/png;base64,{large}", "data:image/png," + "x" * 2000):
            answer = await http.post(stack.base_url + "/chat/completions", json=content(part(url)))
            assert answer.status_code == 413
            assert check_shape(answer)["param"] == URL_PARAM


async def test_text_that_no_message_could_carry() -> None:
    async with running_stack() as stack, httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(
            stack.base_url + "/chat/completions", json=message(role="user", content="x" * 5_000_000)
        )
        assert answer.status_code == 400
        error = check_shape(answer)
        assert error["code"] == "context_length_exceeded"
        assert "maximum context length is 512 tokens" in str(error["message"])


async def test_too_many_pictures_names_the_limit() -> None:
    async with running_stack(limit_mm_per_prompt={"image": 1}) as stack, httpx.AsyncClient() as http:
        answer = await http.post(
            stack.base_url + "/chat/completions", json=content(part(DATA_URL), part(DATA_URL))
        )
        assert check_shape(answer)["message"] == "At most 1 image(s) may be provided in one prompt."


async def test_files_below_the_allowed_folder_only(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "allowed-not"
    allowed.mkdir()
    outside.mkdir()
    (allowed / "a b.png").write_bytes(b"\x89PNG")
    (outside / "secret").write_bytes(b"secret")
    (allowed / "link").symlink_to(outside / "secret")
    (allowed / "folder").mkdir()
    async with running_stack(allowed_local_media_path=allowed) as stack, httpx.AsyncClient() as http:

        async def ask(url: str) -> httpx.Response:
            return await http.post(stack.base_url + "/chat/completions", json=content(part(url)))

        assert (await ask(f"file://{allowed}/a%20b.png")).status_code == 200
        assert (await ask(f"file://localhost{allowed}/a b.png")).status_code == 200
        denied = [
            await ask(f"file://{path}")
            for path in (
                allowed / "missing",
                allowed / "link",
                allowed / "folder",
                outside / "secret",
                f"{allowed}/../allowed-not/secret",
                f"{allowed}/%2e%2e/allowed-not/secret",
                f"{allowed}/a%00b",
                "example.org/a.png",
            )
        ]
        assert {answer.status_code for answer in denied} == {400}
        assert len({answer.text for answer in denied}) == 1
        assert "secret" not in denied[0].text


async def test_keys() -> None:
    async with running_stack(api_key=("one", "two")) as stack, httpx.AsyncClient() as http:
        for path in ("/v1/models", "/v1/nothing", "/nothing", "//v1/models", "/v1/../v1/models"):
            answer = await http.get(stack.url + path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            check_shape(answer)
        for header in ("Bearer three", "Bearer", "Basic one", "one", "Bearer one two"):
            answer = await http.get(stack.base_url + "/models", headers={"Authorization": header})
            assert answer.status_code == 401, header
        for key in ("one", "two"):
            answer = await http.get(stack.base_url + "/models", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        for path in ("/health", "/ping", "/version", "/metrics"):
            assert (await http.get(stack.url + path)).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            await openai.AsyncOpenAI(base_url=stack.base_url, api_key="x", max_retries=0).models.list()


async def test_large_body_without_a_key_is_refused_unread() -> None:
    async with running_stack(api_key=("one",)) as stack, httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(
            stack.base_url + "/chat/completions",
            content=b" " * 20_000_000,
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 401


async def test_unknown_paths_and_methods() -> None:
    async with running_stack() as stack, httpx.AsyncClient() as http:
        answer = await http.get(stack.base_url + "/nothing")
        assert (answer.status_code, check_shape(answer)["code"]) == (404, "not_found")
        answer = await http.get(stack.base_url + "/chat/completions")
        assert (answer.status_code, check_shape(answer)["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
        assert (await http.get(stack.base_url + "/models/")).status_code == 404
        answer = await http.get(stack.base_url + "/models/nothing")
        assert (answer.status_code, check_shape(answer)["code"]) == (404, "model_not_found")


async def test_client_that_stops_sending_leaves_nothing_behind() -> None:
    async with running_stack() as stack:
        _, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rsplit(":", 1)[1]))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        await writer.drain()
        await until(lambda: count(stack) == 1)
        writer.close()
        await until(lambda: count(stack) == 0, seconds=1.0)


def count(stack: Stack) -> float | None:
    return stack.gateway.metrics.registry.get_sample_value("percept:num_requests_in_gateway")
