"""One call of `Generate`, from its admission to the single place where it ends.

Joins prompt, store and engine. Whatever ends the call (a finish, an error, the
deadline, a caller who left) closes the generator, whose one `finally` frees
everything. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from llm_service.choice import Choice, RequestNews
from llm_service.choice_text import ChoiceText
from llm_service.context_length import answer_room
from llm_service.embedding_store import EmbeddingStore
from llm_service.engine.times_wish import TokenTimesWish
from llm_service.engine_client import EngineClient
from llm_service.laid_out_prompt import LaidOutPrompt
from llm_service.prompt import Prompt, PromptBuilder
from llm_service.prompt_items import Item
from llm_service.sampling import GenerationPlan
from protos.llm.v1 import llm_service_pb2 as pb
from shared.errors import OverloadedError, UnavailableError
from shared.families.base import MediaInfo, Modality

RETRY_AFTER_S = 1.0

_ages = itertools.count(1)


@dataclass(slots=True)
class Admission:
    """Bounds the requests that are accepted and not finished."""

    max_count: int
    count: int = 0

    def enter(self) -> None:
        """Admits one request.

        Raises:
            OverloadedError: the bound is reached.
        """
        if self.count >= self.max_count:
            raise OverloadedError(
                f"the service already works on {self.max_count} requests", retry_after=RETRY_AFTER_S
            )
        self.count += 1

    def leave(self) -> None:
        """One admitted request has ended."""
        self.count -= 1


@dataclass(frozen=True, slots=True)
class GenerationParts:
    """What all generations share."""

    prompts: PromptBuilder
    store: EmbeddingStore
    engine: EngineClient
    admission: Admission


class Generation:
    """One request with its choices."""

    def __init__(self, parts: GenerationParts, request: pb.GenerateRequest, plan: GenerationPlan) -> None:
        self._parts = parts
        self._request = request
        self._plan = plan
        self._arrival = time.monotonic()
        self._age = next(_ages)
        self._event = asyncio.Event()
        self._news = RequestNews(self._event.set)
        self._choices: list[Choice] = []
        self._finished_count = 0
        self._infos: dict[str, MediaInfo] = {}
        self._laid_out: LaidOutPrompt
        self._items: Sequence[Item] = ()
        self._reader: Callable[[str], str] | None = None
        self._times: TokenTimesWish | None = None

    async def frames(self) -> AsyncGenerator[pb.GenerateResponse]:
        """Answers the call.

        Raises:
            PerceptError: whatever ends the request before its last choice is complete.
        """
        self._parts.admission.enter()
        try:
            max_model_len = self._max_model_len()
            prompt = await self._parts.prompts.build(self._request, max_model_len)
            self._plan = self._plan.under(prompt.rules)
            self._open_choice(prompt)
            async for frame in self._until(lambda: self._knows_layouts(prompt)):
                yield frame
            await self._start(prompt, max_model_len)
            async for frame in self._until(lambda: self._finished_count == self._plan.choice_count):
                yield frame
        finally:
            for choice in self._choices:
                choice.close()
            self._parts.admission.leave()

    async def _until(self, done: Callable[[], bool]) -> AsyncIterator[pb.GenerateResponse]:
        """Yields what there is to tell until `done`, waiting for news in between."""
        while True:
            self._event.clear()
            if self._news.failure is not None:
                raise self._news.failure
            for frame in self._take():
                yield frame
            if done():
                return
            await self._event.wait()

    def _take(self) -> list[pb.GenerateResponse]:
        """Collects the frames of all news."""
        frames: list[pb.GenerateResponse] = []
        if self._news.needed:
            needed = pb.MediaNeeded(keys=list(self._news.needed))
            frames.append(pb.GenerateResponse(media_needed=needed))
            self._news.needed.clear()
        for choice in self._choices:
            frames.extend(self._take_choice(choice))
        return frames

    def _take_choice(self, choice: Choice) -> list[pb.GenerateResponse]:
        if choice.told:
            return []
        # A choice may end while its last delta waits for a slow caller: ask first.
        ended = choice.text.ending is not None
        delta = choice.text.take()
        frames = [] if delta is None else [delta]
        if ended:
            choice.told = True
            self._finished_count += 1
            finish = self._finish(choice)
            if delta is not None and self._request.deltas_may_wait:
                # One frame costs both ends less than two.
                finish.last_delta.CopyFrom(frames.pop().delta)
            frames.append(pb.GenerateResponse(finish=finish))
        return frames

    def _finish(self, choice: Choice) -> pb.Finish:
        """A choice's last frame; the last one of all carries usage and timings."""
        finish = choice.text.finish_frame()
        if self._finished_count == self._plan.choice_count:
            finish.usage.CopyFrom(self._usage())
            finish.timings.CopyFrom(self._timings())
        return finish

    def _usage(self) -> pb.Usage:
        prefill = self._choices[0].prefill
        return pb.Usage(
            prompt_token_count=self._laid_out.token_count,
            completion_token_count=sum(choice.text.token_count for choice in self._choices),
            cached_token_count=prefill.cached_token_count if prefill is not None else 0,
            **self._media_usage(),
        )

    def _media_usage(self) -> dict[str, int]:
        """The fields of `Usage` that count each modality's rows; those of a video's sound are audio."""
        counts: Counter[Modality] = Counter()
        for item, count in zip(self._items, self._laid_out.item_token_counts, strict=True):
            sound = self._infos[item.key].sound_row_count
            counts[item.modality] += count - sound
            if sound:
                counts["audio"] += sound
        return {f"{modality}_token_count": count for modality, count in counts.items()}

    def _timings(self) -> pb.Timings:
        prefill = self._choices[0].prefill
        return pb.Timings(
            queue_seconds=prefill.queue_seconds if prefill is not None else 0.0,
            prefill_seconds=prefill.prefill_seconds if prefill is not None else 0.0,
            decode_seconds=max(choice.decode_seconds for choice in self._choices),
        )

    def _max_model_len(self) -> int:
        if self._parts.engine.ready is None:
            raise UnavailableError("the engine is not ready")
        return self._parts.engine.ready.max_model_len

    def _knows_layouts(self, prompt: Prompt) -> bool:
        """Notes the layouts that are known by now. Returns whether those are all."""
        for item in prompt.items:
            if item.key not in self._infos and (info := self._parts.store.layout(item.key)) is not None:
                self._infos[item.key] = info
        return all(item.key in self._infos for item in prompt.items)

    async def _start(self, prompt: Prompt, max_model_len: int) -> None:
        """Lays the prompt out and hands the first choice to the engine."""
        self._items = prompt.items
        media = [self._infos[item.key] for item in prompt.items]
        self._laid_out = await self._parts.prompts.lay_out(prompt, media)
        self._reader = self._parts.prompts.reader(prompt, media)
        laid_out = self._laid_out
        longest = max_model_len
        if laid_out.most_new is not None:
            longest = min(longest, laid_out.token_count + laid_out.most_new)
        filled_in = len(prompt.rules.leading)
        room = answer_room(laid_out.token_count, self._plan.max_token_count, longest, filled_in)
        if self._request.token_times:
            self._times = self._parts.prompts.times_wish(prompt, laid_out.token_count, media)
        self._stopping = self._plan.stopping(room)
        # The others follow when this one's prompt is in the prefix cache.
        self._choices[0].prefilled = lambda: self._start_others(prompt)
        self._start_choice(self._choices[0])

    def _start_others(self, prompt: Prompt) -> None:
        for _ in range(1, self._plan.choice_count):
            self._start_choice(self._open_choice(prompt))

    def _open_choice(self, prompt: Prompt) -> Choice:
        index = len(self._choices)
        text = ChoiceText(
            index, self._plan, self._parts.prompts.tokenizer, with_times=self._request.token_times
        )
        keys = [item.key for item in prompt.items]
        parts = self._parts
        choice = Choice((self._age, index), keys, text, self._news, parts.engine, parts.store)
        self._choices.append(choice)
        choice.want_media()
        return choice

    def _start_choice(self, choice: Choice) -> None:
        choice.text.reader = self._reader
        sampling = self._plan.sampling_of(choice.index)
        sequence_id = self._parts.engine.next_sequence_id()
        message = self._laid_out.sequence(
            sequence_id,
            sampling,
            self._stopping,
            self._arrival,
            self._times,
            # Who looks for stop strings must see each token before the next is computed.
            tokens_may_wait=self._request.deltas_may_wait and not self._plan.stop_strings,
        )
        choice.start(message, self._laid_out.item_of_span)
