"""What must be known of a server before the clock runs: its model's name, how many tokens a word makes.

Knows two questions to ask. Does not know the workload's pictures.
"""

from __future__ import annotations

import json
from dataclasses import replace

import httpx

from percept.bench.asking import Asker
from percept.bench.bodies import Prepared, body_options
from percept.bench.prompts import TextScale, words_by_lot
from percept.bench.target import Target

CONNECT_TIMEOUT_S = 10.0
PROBE_WORDS = (4, 144)


class BenchError(Exception):
    """The server cannot be measured at all. `str(error)` says why."""


async def with_model(target: Target) -> Target:
    """The target with its model's real name in place of "auto".

    Raises:
        BenchError: no server there, or it lists no model.
    """
    if target.model != "auto":
        return target
    url = f"{target.base_url}/models"
    try:
        async with httpx.AsyncClient(timeout=CONNECT_TIMEOUT_S, trust_env=False) as client:
            answer = (await client.get(url, headers=target.headers)).raise_for_status().json()
        return replace(target, model=str(answer["data"][0]["id"]))
    except httpx.ConnectError as error:
        raise BenchError(f"no server at {target.url}: {error}. Start one with: percept up") from error
    except httpx.HTTPStatusError as error:
        said = " ".join(error.response.text.split())[:200]
        raise BenchError(f"{url} answered {error.response.status_code}: {said}") from error
    except httpx.HTTPError as error:
        raise BenchError(f"{url}: {type(error).__name__} {error}".rstrip()) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise BenchError(f"{url} lists no model; name one with --model") from error


async def measure_scale(asker: Asker, target: Target, seed: int) -> TextScale:
    """Counts tokens of a short and a longer prompt. One token for a word where the server does not count.

    Raises:
        BenchError: a probe was refused.
    """
    counts = []
    for word_count in PROBE_WORDS:
        record = await asker.ask(_probe(target, seed, word_count))
        # A probe may stop at once, and has then nothing to say: its prompt was counted all the same.
        if record.error is not None and record.input_tokens is None:
            raise BenchError(f"the first request failed. {record.error}{_advice(target, record.status)}")
        counts.append(record.input_tokens)
    short, longer = counts
    if short is None or longer is None or longer <= short:
        return TextScale()
    per_word = (longer - short) / (PROBE_WORDS[1] - PROBE_WORDS[0])
    return TextScale(template_tokens=max(0.0, short - per_word * PROBE_WORDS[0]), tokens_per_word=per_word)


def _advice(target: Target, status: int | None) -> str:
    """What may help against a refusal of fields that OpenAI does not know."""
    beyond = target.ignore_eos or target.stream_usage
    refused = status in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)
    return " (A strict server may need --no-ignore-eos or --no-stream-usage.)" if beyond and refused else ""


def _probe(target: Target, seed: int, word_count: int) -> Prepared:
    text = " ".join(words_by_lot(f"probe {seed} {word_count}", word_count))
    body = {**body_options(target, 1), "messages": [{"role": "user", "content": text}]}
    return Prepared(-1, "text", json.dumps(body).encode())
