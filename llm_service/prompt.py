"""A request's prompt: checked, rendered, tokenised, its media counted.

Knows the wire's forms of a prompt and the rules that hold between a
prompt and its media. Does not know how many rows an item has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from llm_service.bounded_encoding import encode_bounded
from llm_service.chat_template import ChatMessage, ChatTemplate
from llm_service.context_length import COUNTED_CONTEXTS, check_countable, check_length
from llm_service.conversation import media_indexes, message_part, protected, turn_end
from llm_service.encoder_prompt import EncoderPrompts
from llm_service.engine.times_wish import TokenTimesWish
from llm_service.item_writer import ItemWriter, placeholder_ids
from llm_service.laid_out_prompt import LaidOutPrompt
from llm_service.prompt_items import Item, checked_items, count_text, modality_of
from llm_service.side_thread import SideThread
from llm_service.special_tokens import SpecialTokenGuard, special_token_pattern
from llm_service.speech_prompt import SpeechPrompts, check_wishes, speech_task
from llm_service.task_prompt import TaskPrompts
from llm_service.text_tokenizer import TextTokenizer
from protos.llm.v1 import llm_service_pb2 as pb
from shared.errors import InvalidRequestError
from shared.families.base import MediaInfo, Modality, PromptLayout, WritesItems
from shared.families.takes_tasks import TakesTasks
from shared.families.token_rules import NO_RULES, SpeechTask, TokenRules
from shared.families.writes_speech import WritesSpeech

T = TypeVar("T")

MAX_REQUEST_ID_LENGTH = 128

_SHORT_BYTES = 4096
_SHORT_TOKENS = 2048
"""A request and a prompt up to these are worked on where they are: another thread costs more than they do."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens with one placeholder for each item, in order.

    Attributes:
        pieces: the text that the tokens are of; see `RenderedText`. None for a
            prompt that was given as tokens.
        rules: which tokens may follow it.
        task: that it names, for models that are given tasks; "" for none.
    """

    token_ids: list[int]
    items: tuple[Item, ...]
    pieces: list[str] | None = None
    rules: TokenRules = NO_RULES
    task: str = ""


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A prompt's text, cut so that no typed special token is whole.

    Attributes:
        task: see `Prompt`.
    """

    pieces: list[str]
    task: str = ""


class PromptBuilder:
    """Makes prompts of requests. The heavy part runs in threads of its own."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        layout: PromptLayout,
        template: ChatTemplate | None,
        item_limits: Mapping[Modality, int],
        vocabulary_size: int,
    ) -> None:
        """Args:
        item_limits: items of each served modality that one prompt may hold.
        """
        self.tokenizer = tokenizer
        self.item_limits = item_limits
        self._layout = layout
        self._template = template
        self._vocabulary_size = vocabulary_size
        ids = placeholder_ids(tokenizer, layout, item_limits)
        self._writer = ItemWriter(tokenizer, layout, ids) if isinstance(layout, WritesItems) else None
        self._modality_of_id = {token_id: modality for modality, token_id in ids.items()}
        self._encoder_prompts = EncoderPrompts(layout, self._modality_of_id)
        self._speech = (
            SpeechPrompts(layout, self._modality_of_id) if isinstance(layout, WritesSpeech) else None
        )
        self._tasks = TaskPrompts(layout) if isinstance(layout, TakesTasks) else None
        placeholders = (tokenizer.backend.id_to_token(token_id) for token_id in self._modality_of_id)
        # A checkpoint need not flag its placeholders as special, and typed ones are text all the same.
        self._guarded = special_token_pattern(
            tokenizer.table.special_tokens.union(filter(None, placeholders))
        )
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="prompt")
        self._side_thread = SideThread("the tokenizer")

    async def build(self, request: pb.GenerateRequest, max_model_len: int) -> Prompt:
        """Checks and tokenises a request's prompt.

        Raises:
            InvalidRequestError: the prompt breaks a rule; `param` is the path.
            ContextLengthError: it is too long even without the rows of its media.
        """
        items = checked_items(request.media, self.item_limits)
        if self._tasks is not None:
            self._tasks.check_items(len(items))
        check_wishes(request, self._layout)
        modalities = [item.modality for item in items]
        self._encoder_prompts.check(request)
        render = self._renderer(request, modalities, max_model_len)

        def tokenize() -> Prompt:
            rendered = render()
            pieces = None if isinstance(rendered, list) else rendered.pieces
            task = "" if isinstance(rendered, list) else rendered.task
            token_ids = rendered if isinstance(rendered, list) else self._encoded(rendered, max_model_len)
            if request.HasField("encoder_prompt"):
                # Of two prompts there is no one text any more.
                encoder_ids, task = self._encoder_ids(request.encoder_prompt, max_model_len)
                token_ids, pieces = self._encoder_prompts.joined(encoder_ids, token_ids, modalities), None
            return Prompt(token_ids, items, pieces, self._rules(token_ids), task)

        short = request.ByteSize() <= _SHORT_BYTES
        prompt = tokenize() if short else await self.in_thread(tokenize)
        if self._speech is not None:
            return self._as_speech(self._speech, prompt, speech_task(request), max_model_len)
        check_length(len(prompt.token_ids), max_model_len)
        if request.WhichOneof("prompt") != "conversation":
            prompt = replace(prompt, items=self._in_order(prompt.token_ids, items))
        self._check_tokens(prompt.token_ids, prompt.items)
        return prompt

    def times_wish(self, prompt: Prompt, token_count: int, media: Sequence[MediaInfo]) -> TokenTimesWish:
        """What the engine must know to tell when tokens of the answer are heard.

        Args:
            token_count: of the prompt with all rows.
        """
        assert isinstance(self._layout, WritesSpeech)
        first = token_count + len(prompt.rules.leading)
        return TokenTimesWish(first, self._layout.sounding_rows(media[0]))

    def _encoded(self, rendered: RenderedText, max_model_len: int) -> list[int]:
        return encode_bounded(
            self.tokenizer,
            rendered.pieces,
            max_model_len,
            lambda count: check_length(count, max_model_len, at_least=True),
        )

    def _encoder_ids(self, prompt: pb.RawPrompt, max_model_len: int) -> tuple[list[int], str]:
        """An encoder prompt's tokens, of a text without what begins and ends it; and the task it names."""
        if prompt.HasField("token_ids"):
            check_length(len(prompt.token_ids.ids), max_model_len)
            return self._checked_ids(prompt.token_ids.ids, "encoder_prompt"), ""
        if not prompt.text and self._tasks is None:
            return [], ""
        try:
            rendered = self._rendered(prompt.text)
        except InvalidRequestError as error:
            error.param = "encoder_prompt"
            raise
        # Behind an empty piece, as what begins a prompt is then known: it is dropped.
        token_ids = self._encoded(RenderedText(["", *rendered.pieces]), max_model_len)
        return token_ids[len(self.tokenizer.encode("")) :], rendered.task

    def _rules(self, token_ids: Sequence[int]) -> TokenRules:
        return NO_RULES if self._tasks is None else self._tasks.rules(token_ids)

    @staticmethod
    def _as_speech(
        speech: SpeechPrompts, prompt: Prompt, task: SpeechTask | None, max_model_len: int
    ) -> Prompt:
        """The prompt as a model that writes down what it hears takes it: the recording is nowhere in it."""
        if len(prompt.items) != 1:
            raise InvalidRequestError(
                f"a prompt of this model has one recording, not {len(prompt.items)}", param="media"
            )
        token_ids, rules = speech.completed(prompt.token_ids, task)
        if not token_ids:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        check_length(len(token_ids), max_model_len)
        return Prompt(token_ids, prompt.items, rules=rules)

    async def tokenize(self, request: pb.TokenizeRequest, max_model_len: int) -> tuple[list[int], list[str]]:
        """Tokenises without generating; media parts give one placeholder each.

        Returns:
            Token ids and the text of each.

        Raises:
            InvalidRequestError: the prompt breaks a rule, or is many times too long.
            OverloadedError: too many such calls wait.
        """
        render = self._countable_renderer(request)

        def tokenize() -> tuple[list[int], list[str]]:
            limit = COUNTED_CONTEXTS * max_model_len
            token_ids = encode_bounded(
                self.tokenizer, render().pieces, limit, lambda count: check_countable(count, max_model_len)
            )
            check_countable(len(token_ids), max_model_len)
            return token_ids, [self.tokenizer.table.text(token_id) for token_id in token_ids]

        return await self._side_thread.run(tokenize)

    async def detokenize(self, token_ids: Sequence[int], max_model_len: int) -> str:
        """Turns tokens into text.

        Raises:
            InvalidRequestError: there are too many, or one is not in the vocabulary.
            OverloadedError: too many such calls wait.
        """
        check_countable(len(token_ids), max_model_len)
        return await self._side_thread.run(lambda: self.tokenizer.decode(self._checked_ids(token_ids)))

    async def lay_out(self, prompt: Prompt, media: Sequence[MediaInfo]) -> LaidOutPrompt:
        """Lays out the prompt with the rows of its items.

        Args:
            media: layouts of the prompt's items, in order.

        Raises:
            InvalidRequestError: placeholders and media differ.
        """
        keys = [item.key for item in prompt.items]

        def expand() -> LaidOutPrompt:
            token_ids = prompt.token_ids
            if self._writer is not None and self._speech is None and media:
                token_ids = self._writer.written(token_ids, prompt.pieces, media)
            return LaidOutPrompt.of(self._layout.expand(token_ids, media), keys)

        short = not media and len(prompt.token_ids) <= _SHORT_TOKENS
        return expand() if short else await self.in_thread(expand)

    def reader(self, prompt: Prompt, media: Sequence[MediaInfo]) -> Callable[[str], str] | None:
        """What makes JSON of an answer's text; None where the prompt names no task."""
        return self._tasks.reader(prompt.task, media[0]) if self._tasks is not None and media else None

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs work that would hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Lets the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._side_thread.close()

    def _renderer(
        self, request: pb.GenerateRequest, modalities: Sequence[Modality], max_model_len: int
    ) -> Callable[[], RenderedText | list[int]]:
        """Checks what is cheap to check and returns the rest, for a thread."""
        match request.WhichOneof("prompt"):
            case "conversation":
                return self._conversation_renderer(request.conversation, modalities)
            case "text":
                # Beside an encoder's prompt it is the decoder's, which is no task.
                alone = not request.HasField("encoder_prompt")
                return lambda: self._rendered(request.text) if alone else RenderedText([request.text])
            case "token_ids":
                check_length(len(request.token_ids.ids), max_model_len)
                return lambda: self._checked_ids(request.token_ids.ids)
            case "transcription":
                return self._transcription_renderer(speech_task(request))
        raise InvalidRequestError("a prompt is required", param="prompt")

    def _transcription_renderer(self, task: SpeechTask | None) -> Callable[[], RenderedText]:
        speech = self._speech
        if speech is None:
            raise InvalidRequestError("this model does not write down recordings", param="transcription")
        assert task is not None
        return lambda: RenderedText(speech.pieces(task, self._guarded))

    def _countable_renderer(self, request: pb.TokenizeRequest) -> Callable[[], RenderedText]:
        match request.WhichOneof("prompt"):
            case "conversation":
                modalities = [modality_of(value, "modalities") for value in request.modalities]
                unnamed: Modality = "image" if "image" in self.item_limits else next(iter(self.item_limits))
                modalities = modalities or [unnamed] * len(media_indexes(request.conversation))
                if unknown := set(modalities) - set(self.item_limits):
                    raise InvalidRequestError(f"the model takes no {min(unknown)}", param="modalities")
                return self._conversation_renderer(request.conversation, modalities)
            case "text":
                return lambda: self._rendered(request.text)
        raise InvalidRequestError("a prompt is required", param="prompt")

    def _conversation_renderer(
        self, conversation: pb.Conversation, modalities: Sequence[Modality]
    ) -> Callable[[], RenderedText]:
        if self._template is None:
            raise InvalidRequestError(
                "the model has no chat template; give one with --chat-template", param="messages"
            )
        template = self._template
        guard = SpecialTokenGuard(self._guarded)
        open_turn, continue_last = turn_end(conversation)
        messages = self._messages(conversation, modalities, template)

        def render() -> RenderedText:
            text = template.render(
                protected(messages, guard),
                add_generation_prompt=open_turn,
                continue_final_message=continue_last,
            )
            return self._rendered(text, guard)

        return render

    def _rendered(self, text: str, guard: SpecialTokenGuard | None = None) -> RenderedText:
        """A prompt's text, written out where the model is given tasks, cut where `guard` has put marks."""
        written, task = (text, "") if self._tasks is None else self._tasks.written(text)
        return RenderedText([written] if guard is None else guard.split(written), task)

    def _messages(
        self, conversation: pb.Conversation, modalities: Sequence[Modality], template: ChatTemplate
    ) -> list[ChatMessage]:
        if not conversation.messages:
            raise InvalidRequestError("at least one message is required", param="messages")
        for index, message in enumerate(conversation.messages):
            template.check_role(message.role, f"messages[{index}].role")
        used = len(media_indexes(conversation))
        if used > len(modalities):
            raise InvalidRequestError(
                f"the messages refer to {used} media items, the request has {len(modalities)}", param="media"
            )
        if used < len(modalities):
            raise InvalidRequestError(
                f"media[{used}] is not referred to by any message", param=f"media[{used}]"
            )
        return [
            ChatMessage(message.role, tuple(message_part(part, modalities) for part in message.parts))
            for message in conversation.messages
        ]

    def _checked_ids(self, ids: Sequence[int], param: str = "token_ids") -> list[int]:
        for index, token_id in enumerate(ids):
            known = 0 <= token_id < self._vocabulary_size or token_id in self._modality_of_id
            if not known:
                raise InvalidRequestError(
                    f"token id {token_id} is not in the vocabulary of {self._vocabulary_size}",
                    param=f"{param}[{index}]",
                )
        return list(ids)

    def _in_order(self, token_ids: Sequence[int], items: Sequence[Item]) -> tuple[Item, ...]:
        """The items in the order of their placeholders, where callers could only order each modality's.

        Where placeholders and items differ in number, as they were.
        """
        found = [self._modality_of_id[token_id] for token_id in token_ids if token_id in self._modality_of_id]
        if sorted(found) != sorted(item.modality for item in items):
            return tuple(items)
        queues = {modality: iter([item for item in items if item.modality == modality]) for modality in found}
        return tuple(next(queues[modality]) for modality in found)

    def _check_tokens(self, token_ids: Sequence[int], items: Sequence[Item]) -> None:
        """Checks that the placeholders are those of the items, one each, in order."""
        if not token_ids:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        found = [self._modality_of_id[token_id] for token_id in token_ids if token_id in self._modality_of_id]
        expected = [item.modality for item in items]
        if found != expected:
            raise InvalidRequestError(
                f"the prompt has placeholders for {count_text(found)}, the request has {count_text(expected)}"
                f"{self._hint(expected)}",
                param="media",
            )

    def _hint(self, modalities: Sequence[Modality]) -> str:
        """How items stand in a prompt of this model."""
        known = [modality for modality in dict.fromkeys(modalities) if modality in self.item_limits]
        texts = [f"{self._layout.placeholder_text(modality)!r} for one {modality}" for modality in known]
        return f"; this model's prompts say {', '.join(texts)}" if texts else ""
