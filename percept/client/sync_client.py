"""The client for scripts: no event loop needed.

Knows how calls reach the loop that runs apart. What they do is in `async_client.py`.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast, overload

from percept.client import loop_thread
from percept.client.answers import Answer, Delta
from percept.client.async_client import (
    DEFAULT_ENCODER,
    DEFAULT_LLM,
    DEFAULT_TIMEOUT_S,
    Addresses,
    AsyncClient,
)
from percept.client.messages import Message
from percept.client.prompts import Prompt
from percept.client.sampling import SamplingParams
from percept.client.served import ServedModel
from percept.client.stream import Deltas
from percept.client.transcribing import TranscribeOptions
from percept.client.transcript import Transcript
from percept.client.transcript_stream import TranscriptDelta
from shared.errors import PerceptError, UnavailableError
from shared.families.catalogue import Modality

if TYPE_CHECKING:
    from percept.client.embeddings import Embeddings

T = TypeVar("T")


class Client:
    """Talks to encoder and LLM services over gRPC, without a gateway, from any thread.

        with Client() as client:
            prompt = {"prompt": "USER: <image>\\nWhat is it?\\nASSISTANT:",
                      "multi_modal_data": {"image": Image.open("cat.png")}}
            print(client.generate(prompt)[0].outputs[0].text)

    Every method raises a `PerceptError` (`shared.errors` has the tree): what is wrong with a value,
    with its place as `param`, or what a service answered. Ctrl-C cancels what runs.
    """

    def __init__(
        self,
        *,
        encoder: Addresses = DEFAULT_ENCODER,
        llm: Addresses = DEFAULT_LLM,
        model: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_concurrency: int | None = None,
        delivery_address: str | None = None,
    ) -> None:
        """
        Args:
            encoder: HOST:PORT of the encoder services, one or several; a name may stand for several.
            llm: HOST:PORT of the LLM services likewise.
            model: served model name; empty for the one that is served.
            timeout_s: deadline of each prompt and of each item, in seconds.
            max_concurrency: most prompts or items at once; None for what the services accept.
            delivery_address: HOST:PORT of the LLM service as encoders reach it, where that is another
                address than `llm`.
        """
        self._client = AsyncClient(
            encoder=encoder,
            llm=llm,
            model=model,
            timeout_s=timeout_s,
            max_concurrency=max_concurrency,
            delivery_address=delivery_address,
        )
        self._thread = loop_thread.acquire()
        # Runs once: by close(), when the client is dropped, or when the program ends.
        self._finalizer = weakref.finalize(self, _close, self._client, self._thread)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes every connection. Further calls raise UnavailableError."""
        self._finalizer()

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
        return_errors: Literal[False] = False,
        timeout_s: float | None = None,
    ) -> list[Answer]: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
        return_errors: bool,
        timeout_s: float | None = None,
    ) -> list[Answer | PerceptError]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
        return_errors: bool = False,
        timeout_s: float | None = None,
    ) -> list[Answer] | list[Answer | PerceptError]:
        """Continues one prompt or many.

        Args:
            prompts: each is text, or {"prompt": text} or {"prompt_token_ids": ids}, with
                "multi_modal_data": {"image": ..., "video": ..., "audio": ...} for its placeholders and
                "mm_processor_kwargs" and "media_io_kwargs" for its media. What stands for a medium is in
                `percept.client.media.items_of`: PIL pictures, arrays, files, bytes, embeddings, lists.
            sampling: one for all, or one for each.
            progress: show a bar for many prompts, where standard error is a terminal.
            return_errors: a failed prompt's error takes its answer's place; else the first one is
                raised and the others are cancelled.
            timeout_s: of each prompt, in seconds; the client's where None.

        Returns:
            The answers in the order of the prompts, also for one.
        """
        return self._run(
            self._client.generate(
                prompts, sampling, progress=progress, return_errors=return_errors, timeout_s=timeout_s
            )
        )

    @overload
    def complete(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        timeout_s: float | None = None,
    ) -> Answer: ...

    @overload
    def complete(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        stream: Literal[True],
        timeout_s: float | None = None,
    ) -> Iterator[Delta]: ...

    def complete(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        stream: bool = False,
        timeout_s: float | None = None,
    ) -> Answer | Iterator[Delta]:
        """Continues one prompt in the model's own format, whole or piece by piece.

        Args:
            prompt: as in `generate`; or {"encoder_prompt": PROMPT, "decoder_prompt": PROMPT} for
                encoder-decoder models, the media in the former.
            stream: returns an iterator over what comes; leaving it early cancels the request.
        """
        if not stream:
            return self._run(self._client.complete(prompt, sampling, timeout_s=timeout_s))
        return self._iterate(
            self._run(self._client.complete(prompt, sampling, stream=True, timeout_s=timeout_s))
        )

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        timeout_s: float | None = None,
    ) -> Answer: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        stream: Literal[True],
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Delta]: ...

    def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        stream: bool = False,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        timeout_s: float | None = None,
    ) -> Answer | Iterator[Delta]:
        """Continues a conversation, rendered with the checkpoint's chat template.

        Args:
            messages: in OpenAI's form. Besides "text" and "image_url" (data URL, `file://` URL or path;
                nothing is fetched from the network) a part may be {"type": "image", "image": VALUE},
                likewise "video" and "audio", with a value as in `generate`, or
                {"type": "image_embeds", "image_embeds": ...}.
            stream: returns an iterator over what comes; leaving it early cancels the request.
            add_generation_prompt: open the assistant's turn; None means yes.
            continue_final_message: leave the last message open and continue it.
            mm_processor_kwargs: processor settings of the media.
            media_io_kwargs: how files are read, {"video": {"num_frames": 16}} or {"video": {"fps": 2}}.
        """
        options: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "mm_processor_kwargs": mm_processor_kwargs,
            "media_io_kwargs": media_io_kwargs,
            "timeout_s": timeout_s,
        }
        if not stream:
            return cast(Answer, self._run(self._client.chat(messages, sampling, **options)))
        return self._iterate(self._run(self._client.chat(messages, sampling, stream=True, **options)))

    def _iterate(self, deltas: Deltas[T]) -> Iterator[T]:
        async def following() -> T | None:
            return await anext(deltas, None)

        try:
            while (delta := self._run(following())) is not None:
                yield delta
        finally:
            with contextlib.suppress(UnavailableError):  # The client was closed first.
                self._run(deltas.aclose())

    def encode(
        self,
        media: Any,
        *,
        modality: Modality | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Encodes one item and returns its embeddings, ready to be sent back in a prompt.

        Args:
            media: as in `generate`.
            modality: what it is of; by its type, name or first bytes where None.
            mm_processor_kwargs: processor settings.
            media_io_kwargs: as in `chat`.
        """
        return self._run(
            self._client.encode(
                media,
                modality=modality,
                mm_processor_kwargs=mm_processor_kwargs,
                media_io_kwargs=media_io_kwargs,
                timeout_s=timeout_s,
            )
        )

    @overload
    def encode_many(
        self,
        media: Sequence[Any],
        *,
        modality: Modality | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        progress: bool = True,
        return_errors: Literal[False] = False,
        timeout_s: float | None = None,
    ) -> list[Embeddings]: ...

    @overload
    def encode_many(
        self,
        media: Sequence[Any],
        *,
        modality: Modality | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        progress: bool = True,
        return_errors: bool,
        timeout_s: float | None = None,
    ) -> list[Embeddings | PerceptError]: ...

    def encode_many(
        self,
        media: Sequence[Any],
        *,
        modality: Modality | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        progress: bool = True,
        return_errors: bool = False,
        timeout_s: float | None = None,
    ) -> list[Embeddings] | list[Embeddings | PerceptError]:
        """Encodes many items at once; results in order. Progress and errors as in `generate`."""
        return self._run(
            self._client.encode_many(
                media,
                modality=modality,
                mm_processor_kwargs=mm_processor_kwargs,
                media_io_kwargs=media_io_kwargs,
                progress=progress,
                return_errors=return_errors,
                timeout_s=timeout_s,
            )
        )

    @overload
    def transcribe(
        self, recording: Any, *, stream: Literal[False] = False, **options: Unpack[TranscribeOptions]
    ) -> Transcript: ...

    @overload
    def transcribe(
        self, recording: Any, *, stream: Literal[True], **options: Unpack[TranscribeOptions]
    ) -> Iterator[TranscriptDelta]: ...

    def transcribe(
        self, recording: Any, *, stream: bool = False, **options: Unpack[TranscribeOptions]
    ) -> Transcript | Iterator[TranscriptDelta]:
        """Writes down what is said in one recording of any length, a value as in `generate`.

        Args:
            stream: returns an iterator over the text as it comes; leaving it early cancels the work.
            options: `language` that is spoken, heard where empty; `translate` into English; `prompt`, what
                was said before; `words`, with their times, which Whisper alone tells; `temperature`,
                0 to 1; `temperature_increment_on_fallback`: with temperature 0, and not in a stream,
                pieces that Whisper is unsure of are tried again at so much more, up to 1, 0 for never;
                `seed`; `timeout_s`.
        """
        if not stream:
            return self._run(self._client.transcribe(recording, **options))
        return self._iterate(self._run(self._client.transcribe(recording, stream=True, **options)))

    def tokenize(self, prompt: str | Sequence[Message], *, timeout_s: float | None = None) -> list[int]:
        """Token ids of a text or of rendered messages. Placeholders of media stay unexpanded."""
        return self._run(self._client.tokenize(prompt, timeout_s=timeout_s))

    def detokenize(self, token_ids: Sequence[int], *, timeout_s: float | None = None) -> str:
        """Text of token ids, special ones left out."""
        return self._run(self._client.detokenize(token_ids, timeout_s=timeout_s))

    def model(self, *, timeout_s: float | None = None) -> ServedModel:
        """What the LLM service serves."""
        return self._run(self._client.model(timeout_s=timeout_s))

    def wait_until_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Returns once an LLM service and an encoder service answer.

        Raises:
            DeadlineError: they did not in time.
        """
        self._run(self._client.wait_until_ready(timeout_s))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._finalizer.alive:
            work.close()
            raise UnavailableError("the client is closed")
        return self._thread.run(work)


def _close(client: AsyncClient, thread: loop_thread.LoopThread) -> None:
    try:
        thread.run(client.close())
    finally:
        loop_thread.release(thread)
