"""A family's tiny checkpoint in the running services, and the same one in the oracle.

Knows how to put one question to both and how to tell where their answers part.
Does not know any family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest

from llm_service.text_tokenizer import TextTokenizer
from protos.llm.v1 import llm_service_pb2
from protos.llm.v1.llm_service_pb2_grpc import LlmServiceStub
from shared.checkpoint import read_checkpoint
from shared.errors import PerceptError
from shared.families import load_family
from tests.asking import audio_part, data_url, template_messages, user, video_part
from tests.families import main_modality
from tests.families.case import FamilyCase
from tests.items import features_of, item
from tests.laying_out import Layouter
from tests.oracle import Media, Oracle, OracleAnswer, Recording, Video
from tests.stack import UpStack

BLOCK = 16
TIMEOUT_S = 240.0

Part = str | Media | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation.

    Attributes:
        messages: as an OpenAI client writes them.
        media: the items in them, in order.
    """

    messages: list[dict[str, Any]]
    media: list[Media]


def question(*turns: Sequence[Part]) -> Question:
    """A conversation of turns, the user's and the assistant's by turns: text and items."""
    messages = []
    for index, turn in enumerate(turns):
        parts = [_content_part(part) for part in turn]
        messages.append(user(*parts) | {"role": ("user", "assistant")[index % 2]})
    media = [part for turn in turns for part in turn if isinstance(part, Media)]
    return Question(messages, media)


def _content_part(part: Part) -> Any:
    """What `user` takes."""
    if isinstance(part, Video):
        heard = (part.sound.samples, part.sound.rate) if part.sound is not None else None
        return video_part(part.frames, part.fps, heard)
    return audio_part(part.samples, part.rate) if isinstance(part, Recording) else part


class ServedFamily:
    """The services with one checkpoint, and the oracle's view of it."""

    def __init__(self, case: FamilyCase, folder: Path, oracle: Oracle) -> None:
        self.case = case
        self.folder = folder
        self._oracle = oracle
        self._expected: dict[str, OracleAnswer] = {}
        self._tokenizer = TextTokenizer.load(folder)
        self._ids_by_bytes: dict[bytes, list[int]] = {}
        for token_id in range(len(self._tokenizer)):
            self._ids_by_bytes.setdefault(self._tokenizer.table.raw(token_id), []).append(token_id)
        self.stack = UpStack(
            folder,
            *("--served-model-name", "tiny", "--workers", "1"),
            *("--max-num-batched-tokens", str(self._step_size()), "--block-size", str(BLOCK)),
            *("--kv-cache-gib", "0.03"),
        )

    def _step_size(self) -> int:
        """Most tokens of a step; see `FamilyCase.chunk`."""
        front, preprocessor = Layouter(self.folder), load_family(read_checkpoint(self.folder)).preprocessor()
        placeholder = front.layout.placeholder_text(main_modality(self.case))
        infos = [features_of(preprocessor, item(self.case, 0, which)).info for which in range(2)]
        layouts = [front.lay_out(placeholder, [info]).spans for info in infos]
        assert {span.splittable for spans in layouts for span in spans} == {self.case.spans_may_be_cut}
        longest = [max(span.length for span in spans) for spans in layouts]
        if self.case.spans_may_be_cut:
            size = self.case.chunk or min(8, min(longest) - 1)
            assert 0 < size < min(longest), f"steps of {size} tokens cut no span of {longest} rows"
        else:
            size = self.case.chunk or max(24, *longest)
            assert size >= max(longest), f"steps of {size} tokens would cut spans of {longest} rows"
        return size

    def close(self) -> None:
        """Stops the services."""
        self.stack.stop()

    def expected(self, asked: Question, name: str, tokens: int) -> OracleAnswer:
        """What transformers answers; `name` says which question it is, and remembers the answer."""
        if name not in self._expected:
            self._expected[name] = self._oracle.ask(
                self.case, self.folder, template_messages(asked.messages), asked.media, new_tokens=tokens
            )
        return self._expected[name]

    async def answer(self, messages: list[dict[str, Any]], tokens: int) -> Any:
        """The greedy answer of the services, `tokens` long."""
        url = f"{self.stack.url}/v1"
        # One client for each question: every test has an event loop of its own.
        async with openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, timeout=TIMEOUT_S
        ) as client:
            return await client.chat.completions.create(
                model="tiny",
                messages=messages,  # type: ignore[arg-type]
                temperature=0,
                max_completion_tokens=tokens,
                logprobs=True,
                extra_body={"min_tokens": tokens},
            )

    async def completion(
        self, prompt: Any, media: Sequence[Media], tokens: int, **fields: Any
    ) -> openai.types.Completion:
        """The greedy continuation of a raw prompt, `tokens` long."""
        async with openai.AsyncOpenAI(
            base_url=f"{self.stack.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
        ) as client:
            data = {"multi_modal_data": multi_modal_data(media)} if media else {}
            return await client.completions.create(
                model="tiny",
                prompt=prompt,
                temperature=0,
                max_tokens=tokens,
                logprobs=0,
                extra_body={"min_tokens": tokens, **data, **fields},
            )

    async def check_completion(
        self, answer: openai.types.Completion, asked: Question, name: str, tokens: int
    ) -> None:
        """Fails where the continuation of the oracle's own prompt is not the oracle's."""
        await self._check(_pieces(answer), answer.usage, asked, name, tokens)

    async def check(self, answer: Any, asked: Question, name: str, tokens: int) -> None:
        """Fails where the answer is not the oracle's, and says what differs: the prompt or the numbers."""
        (choice,) = answer.choices
        pieces = [bytes(token.bytes) for token in choice.logprobs.content]
        await self._check(pieces, answer.usage, asked, name, tokens)

    async def _check(
        self, pieces: Sequence[bytes], usage: Any, asked: Question, name: str, tokens: int
    ) -> None:
        expected = self.expected(asked, name, tokens)
        found = self.token_ids(pieces, expected.new_ids)
        in_front = self.case.rows_in_front * len(asked.media)
        same_length = usage.prompt_tokens == in_front + len(expected.prompt_ids)
        if found == expected.new_ids and same_length:
            return
        try:
            ours = await self.prompt_ids(asked, expected)
        except PerceptError as error:
            ours, verdict = [], f"the prompt cannot be laid out again: {error}"
        else:
            verdict = _verdict(ours[in_front:], expected.prompt_ids)
        pytest.fail(
            f"\nfamily {self.case.model_type}, question {name!r}\n"
            f"tokens, services: {found}\n"
            f"tokens, oracle:   {expected.new_ids}\n"
            f"prompt, services: {usage.prompt_tokens} tokens, laid out again: {ours}\n"
            f"prompt, oracle:   {len(expected.prompt_ids)} tokens: {expected.prompt_ids}\n"
            f"{verdict}\n"
            f"text, oracle: {expected.text!r}",
            pytrace=False,
        )

    def token_ids(self, pieces: Sequence[bytes], likely: Sequence[int]) -> list[int]:
        """Ids of tokens by their bytes; of several ids with the same bytes the likely one.

        A row of padding beyond the vocabulary has no bytes: -1 where that is not likely.
        """
        found = []
        for index, piece in enumerate(pieces):
            expected = likely[index] if index < len(likely) else -1
            ids = self._ids_by_bytes.get(piece, [-1])
            fits = expected in ids or (not piece and expected >= len(self._tokenizer))
            found.append(expected if fits else ids[0])
        return found

    async def prompt_ids(self, asked: Question, expected: OracleAnswer) -> list[int]:
        """The prompt as the LLM service renders it and the family lays it out.

        Raises:
            PerceptError: what the service rendered and the items do not fit.
        """
        (llm,) = self.stack.services("llm")
        async with grpc.aio.insecure_channel(llm.address) as channel:
            rendered = await LlmServiceStub(channel).Tokenize(
                llm_service_pb2.TokenizeRequest(conversation=_conversation(asked.messages)), timeout=30
            )
        token_ids = list(rendered.token_ids)
        preprocessor = load_family(read_checkpoint(self.folder)).preprocessor()
        infos = [features_of(preprocessor, shown).info for shown in asked.media]
        front = Layouter(self.folder)
        has_videos = any(isinstance(item, Video) for item in asked.media)
        # `Tokenize` is not told what an item is, and writes none out: where its tokens are the
        # oracle's own, the oracle's text stands for the service's.
        if has_videos or token_ids == front.tokenizer.encode(expected.text):
            return front.lay_out(expected.text, infos).token_ids
        return front.layout.expand(token_ids, infos).token_ids


def multi_modal_data(media: Sequence[Media]) -> dict[str, list[Any]]:
    """Items as completion requests have them."""
    data: dict[str, list[Any]] = {}
    for one in media:
        if isinstance(one, Video):
            heard = (one.sound.samples, one.sound.rate) if one.sound is not None else None
            data.setdefault("video", []).append(video_part(one.frames, one.fps, heard)["video_url"])
        elif isinstance(one, Recording):
            data.setdefault("audio", []).append(audio_part(one.samples, one.rate)["input_audio"])
        else:
            data.setdefault("image", []).append(data_url(one))
    return data


def _pieces(answer: openai.types.Completion) -> list[bytes]:
    """The bytes of each token of a completion."""
    (choice,) = answer.choices
    assert choice.logprobs is not None and choice.logprobs.tokens is not None
    kind = "bytes:"
    return [
        bytes.fromhex(name.removeprefix(kind).replace("\\x", "")) if name.startswith(kind) else name.encode()
        for name in choice.logprobs.tokens
    ]


def _conversation(messages: Sequence[Mapping[str, Any]]) -> llm_service_pb2.Conversation:
    count = 0
    wired = []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append(llm_service_pb2.ContentPart(text=part["text"]))
            else:
                parts.append(llm_service_pb2.ContentPart(media_index=count))
                count += 1
        wired.append(llm_service_pb2.Message(role=message["role"], parts=parts))
    return llm_service_pb2.Conversation(messages=wired)


def _verdict(ours: Sequence[int], theirs: Sequence[int]) -> str:
    if list(ours) == list(theirs):
        return "the prompts are the same: the numbers differ (pixels, tower, positions, decoder)"
    place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    place = min(len(ours), len(theirs)) if place is None else place
    return (
        f"the prompts part at token {place}: services ...{list(ours[place : place + 8])},"
        f" oracle ...{list(theirs[place : place + 8])}"
    )
