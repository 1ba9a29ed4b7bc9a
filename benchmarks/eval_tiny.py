"""`python -m benchmarks.eval_tiny`: how many answers percept-tiny gets right, asked over the OpenAI API.

Makes unseen pictures, recordings and films, sends them to any OpenAI-compatible server, and holds whole
conversations about pictures: the model's own answers become the history of its next questions. Prints
accuracy per skill, and the word error rate of transcriptions; exits with 1 where one is worse than wanted.
Knows nothing about what answers behind the URL. Voices need the program espeak-ng.
"""

import argparse
import asyncio
import base64
import io
import sys
from collections.abc import Callable, Coroutine, Iterator
from itertools import islice
from typing import Any, TypeVar

import jiwer
from openai import APIConnectionError, AsyncOpenAI
from tqdm import tqdm

from models.senses.cases import SKILLS as SENSES
from models.senses.cases import Dictation, SenseCase, dictations, sense_cases
from models.training.cases import Case, cases
from models.training.conversations import Exchange
from models.training.drawing import draw
from models.training.scenes import Scene
from models.training.tally import Tally

_LONGEST_ANSWER = 48

Asked = TypeVar("Asked")


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


def sense_message(case: SenseCase) -> dict[str, Any]:
    """A question about a recording or a film."""
    encoded = base64.b64encode(case.file).decode()
    part: dict[str, Any] = (
        {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}
        if case.kind == "audio"
        else {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + encoded}}
    )
    return {"role": "user", "content": [part, {"type": "text", "text": case.question.question}]}


class Judge:
    """One server's answers, counted.

    Attributes:
        tally: right answers, by skill.
        said, heard: what was dictated and what was written down.
    """

    def __init__(self, client: AsyncOpenAI, model: str) -> None:
        self._client = client
        self._model = model
        self.tally = Tally()
        self.said: list[str] = []
        self.heard: list[str] = []

    async def hold(self, case: Case) -> None:
        """Asks the case's questions one after another and counts the answers."""
        messages: list[Any] = []
        for exchange in case.exchanges:
            messages.append(user_message(exchange))
            answer = await self._answer(messages)
            messages.append({"role": "assistant", "content": answer})
            self.tally.count(case.skill, exchange.turn.question, exchange.turn.answer, answer)

    async def ask(self, case: SenseCase) -> None:
        """Asks about a recording or a film."""
        answer = await self._answer([sense_message(case)])
        wanted = case.question
        self.tally.count(wanted.skill, wanted.question, wanted.answer, answer)

    async def dictate(self, dictation: Dictation) -> None:
        """Has a recording written down."""
        written = await self._client.audio.transcriptions.create(
            model=self._model, file=("dictation.wav", dictation.file, "audio/wav"), temperature=0
        )
        self.said.append(" ".join(dictation.words))
        self.heard.append(_plain(written.text))

    def word_error_rate(self) -> float:
        """Words wrong, missing or too many, for each word that was said."""
        return float(jiwer.wer(self.said, self.heard))

    async def _answer(self, messages: list[Any]) -> str:
        completion = await self._client.chat.completions.create(
            model=self._model, messages=messages, temperature=0, max_tokens=_LONGEST_ANSWER
        )
        return completion.choices[0].message.content or ""


def _plain(text: str) -> str:
    """Words alone, in small letters."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


async def _share(
    waiting: Iterator[Asked],
    count: int,
    what: str,
    ask: Callable[[Asked], Coroutine[Any, Any, None]],
    many: int,
) -> None:
    """Asks everything that waits, `many` at a time."""
    with tqdm(total=count, desc=what, unit="case") as progress:

        async def take_turns() -> None:
            while (one := next(islice(waiting, 1), None)) is not None:
                await ask(one)
                progress.update()

        await asyncio.gather(*(take_turns() for _ in range(many)))


async def evaluate(chosen: argparse.Namespace) -> Judge:
    """Asks everything that was chosen."""
    async with AsyncOpenAI(base_url=chosen.url, api_key="none", timeout=300) as client:
        judge = Judge(client, chosen.model or await _only_model(client))
        seed, many = chosen.seed, chosen.concurrency
        await _share(cases(seed, chosen.count), chosen.count, "pictures", judge.hold, many)
        await _share(sense_cases(seed, chosen.senses), chosen.senses, "senses", judge.ask, many)
        await _share(
            dictations(seed, chosen.dictations), chosen.dictations, "dictations", judge.dictate, many
        )
    return judge


async def _only_model(client: AsyncOpenAI) -> str:
    return (await client.models.list()).data[0].id


def _good_enough(tally: Tally, pictures: float, senses: float) -> bool:
    """Whether every skill by itself is answered as well as wanted."""
    return all(
        tally.right[skill] >= (senses if skill in SENSES else pictures) * asked
        for skill, asked in tally.asked.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eval_tiny", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="any OpenAI-compatible server")
    parser.add_argument("--model", help="the model's name; otherwise the first that the server lists")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--count", type=int, default=1800, help="conversations about pictures, the skills in turn"
    )
    parser.add_argument("--senses", type=int, default=800, help="recordings and films, the skills in turn")
    parser.add_argument("--dictations", type=int, default=100, help="recordings to be transcribed")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument(
        "--at-least",
        type=float,
        default=0.95,
        help="the wanted share of right answers for each skill of pictures",
    )
    parser.add_argument("--senses-at-least", type=float, default=0.9, help="the same for each other skill")
    parser.add_argument("--wrong", action="store_true", help="print the wrong answers, too")
    chosen = parser.parse_args()
    try:
        judge = asyncio.run(evaluate(chosen))
    except APIConnectionError:
        parser.exit(2, f"nobody answers at {chosen.url}; serve the model first: make up\n")
    print(judge.tally.table())
    if judge.said:
        print(f"word error rate of {len(judge.said)} transcriptions: {judge.word_error_rate():.2%}")
    if chosen.wrong:
        print("\n".join(judge.tally.wrong))
    sys.exit(0 if _good_enough(judge.tally, chosen.at_least, chosen.senses_at_least) else 1)


if __name__ == "__main__":
    main()
