"""`python -m benchmarks.eval_tiny`: how many answers percept-tiny gets right, asked over the OpenAI API.

Draws unseen pictures, sends them as data URLs to any OpenAI-compatible server, and holds whole conversations:
the model's own answers become the history of its next questions. Prints accuracy per skill and overall; exits
with 1 below the wanted accuracy. Knows nothing about what answers behind the URL.
"""

import argparse
import asyncio
import base64
import io
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

from openai import AsyncOpenAI
from tqdm import tqdm

from models.training.cases import Case, cases
from models.training.conversations import Exchange
from models.training.drawing import draw
from models.training.scenes import Scene
from models.training.tally import Tally

_LONGEST_ANSWER = 48


def data_url(scene: Scene) -> str:
    """The drawn scene as a PNG in a data URL, pixel for pixel."""
    encoded = io.BytesIO()
    draw(scene).save(encoded, "PNG")
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


def user_message(exchange: Exchange) -> dict[str, Any]:
    """The exchange's question as the OpenAI API wants it."""
    if not exchange.scenes:
        return {"role": "user", "content": exchange.turn.question}
    text = [{"type": "text", "text": exchange.turn.question}]
    pictures = [{"type": "image_url", "image_url": {"url": data_url(scene)}} for scene in exchange.scenes]
    return {"role": "user", "content": text + pictures if exchange.text_first else pictures + text}


async def hold(client: AsyncOpenAI, model: str, case: Case, tally: Tally) -> None:
    """Asks the case's questions one after another and counts the answers."""
    messages: list[Any] = []
    for exchange in case.exchanges:
        messages.append(user_message(exchange))
        completion = await client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=_LONGEST_ANSWER
        )
        answer = completion.choices[0].message.content or ""
        messages.append({"role": "assistant", "content": answer})
        tally.count(case.skill, exchange.turn.question, exchange.turn.answer, answer)


async def evaluate(url: str, model: str | None, seed: int, count: int, concurrency: int) -> Tally:
    """Holds `count` conversations, `concurrency` at a time."""
    tally = Tally()
    async with AsyncOpenAI(base_url=url, api_key="none", timeout=300) as client:
        name = model or await _only_model(client)
        waiting = cases(seed, count)
        with tqdm(total=count, desc="evaluating", unit="case") as progress:
            await asyncio.gather(
                *(_take_turns(client, name, waiting, tally, progress) for _ in range(concurrency))
            )
    return tally


async def _take_turns(
    client: AsyncOpenAI, model: str, waiting: Iterator[Case], tally: Tally, progress: "tqdm[Any]"
) -> None:
    """One of several askers that share what is waiting."""
    while (case := next(islice(waiting, 1), None)) is not None:
        await hold(client, model, case, tally)
        progress.update()
        progress.set_postfix(right=f"{tally.accuracy:.2%}")


async def _only_model(client: AsyncOpenAI) -> str:
    return (await client.models.list()).data[0].id


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eval_tiny", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="any OpenAI-compatible server")
    parser.add_argument("--model", help="the model's name; otherwise the first that the server lists")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=900, help="conversations, the skills in turn")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--at-least", type=float, default=0.95, help="the wanted share of right answers")
    parser.add_argument("--wrong", action="store_true", help="print the wrong answers, too")
    chosen = parser.parse_args()
    tally = asyncio.run(evaluate(chosen.url, chosen.model, chosen.seed, chosen.count, chosen.concurrency))
    print(tally.table())
    if chosen.wrong:
        print("\n".join(tally.wrong))
    sys.exit(0 if tally.accuracy >= chosen.at_least else 1)


if __name__ == "__main__":
    main()
