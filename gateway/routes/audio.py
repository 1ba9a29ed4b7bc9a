"""POST /v1/audio/transcriptions and /v1/audio/translations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from gateway.answers import finish_reason
from gateway.conductor import Assignment
from gateway.description import ERROR_RESPONSES, TRANSCRIPT_RESPONSE, form_body
from gateway.errors import as_percept_error, json_response
from gateway.media import ResolvedItem, recording_item
from gateway.metrics import RequestMeter
from gateway.multipart import FILE, UploadForm, read_form
from gateway.parts import Gateway
from gateway.sse import EventStreamResponse, while_connected
from gateway.transcription_answers import TextStream, json_object, verbose_object
from gateway.transcription_form import TranscriptionRequest, parse_transcription_request
from gateway.transcription_request import SPEECH_NAMES, SpeechRequest, speech_facts
from gateway.work import PlainRoute, Work
from protos.llm.v1 import llm_service_pb2
from shared.errors import BadMediaError, InternalError, InvalidRequestError
from shared.speech.question import Asking
from shared.speech.transcribing import Frames, Part, Transcribing
from shared.speech.transcript import to_srt, to_vtt
from shared.speech.written import segments, whole_text
from shared.telemetry import Stopwatch

router = APIRouter(tags=["audio"], route_class=PlainRoute)

Json = dict[str, Any]


@router.post(
    "/v1/audio/transcriptions",
    responses={**ERROR_RESPONSES, **TRANSCRIPT_RESPONSE},
    openapi_extra={"requestBody": form_body(TranscriptionRequest)},
)
async def create_transcription(request: Request) -> Response:
    """Writes down what is said in a recording."""
    return await _answered(request, translates=False)


@router.post(
    "/v1/audio/translations",
    responses={**ERROR_RESPONSES, **TRANSCRIPT_RESPONSE},
    openapi_extra={"requestBody": form_body(TranscriptionRequest)},
)
async def create_translation(request: Request) -> Response:
    """Writes down in English what is said in a recording in any language."""
    return await _answered(request, translates=True)


async def _answered(request: Request, *, translates: bool) -> Response:
    work = _SpeechWork(request.app.state.gateway, request)
    asked = work.understood(await work.read_form(request), translates=translates)
    if not asked.form.stream:
        return await while_connected(request.receive, _whole(work, asked))
    return EventStreamResponse(_events(work, asked))


class _SpeechWork:
    """One recording's way through the gateway."""

    def __init__(self, gateway: Gateway, request: Request) -> None:
        work = Work(gateway, request)
        self._gateway = gateway
        self._holding = work.holding
        self._request_id = work.request_id
        self._deadline = work.deadline
        self._meter = RequestMeter(gateway.metrics, Stopwatch())
        self._usage = llm_service_pb2.Usage()
        self._timings = llm_service_pb2.Timings()
        # Until it is cut; then its pieces are held in its place.
        self._upload = b""
        self._piece_byte_count = 0

    async def read_form(self, request: Request) -> UploadForm:
        """Returns the form. A client that is slow to send has the same deadline."""
        async with asyncio.timeout(self._deadline.remaining_s()):
            return await read_form(request, self._gateway.settings.max_audio_byte_count, self._holding)

    def understood(self, form: UploadForm, *, translates: bool) -> SpeechRequest:
        """What the form asks for.

        Raises:
            UnknownModelError: the request names another model.
            InvalidRequestError: the form or the model does not allow it.
        """
        fields = parse_transcription_request(form.fields)
        if form.file is None:
            raise InvalidRequestError(
                f"Missing required parameter: '{FILE}'.", param=FILE, code="missing_required_parameter"
            )
        if not form.file:
            raise BadMediaError("The file is empty.", param=FILE)
        self._upload = form.file
        self._gateway.check_model(fields.model)
        facts = speech_facts(self._gateway.model().facts, fields)
        return SpeechRequest.of(fields, facts, self._request_id, translates=translates)

    async def opened(self, asked: SpeechRequest) -> Transcribing:
        """Has the recording cut into pieces.

        Raises:
            PerceptError: the recording is bad, or no encoder service takes it.
        """
        with self._measured_failures():
            return await self._opened(asked)

    async def _opened(self, asked: SpeechRequest) -> Transcribing:
        payload, self._upload = self._upload, b""
        settings = self._gateway.server_settings()
        whole = await asyncio.to_thread(recording_item, payload, settings, FILE)
        try:
            async with asyncio.timeout(self._deadline.remaining_s()):
                cut = await self._gateway.encoding.split(
                    payload, whole.item.key, self._deadline, self._take_pieces
                )
        except InvalidRequestError as error:
            if type(error) is InvalidRequestError:
                raise InternalError(f"The recording could not be cut: {error.message}") from error
            error.param = FILE
            raise
        items = await asyncio.to_thread(
            lambda: [
                whole if piece.payload is payload else recording_item(piece.payload, settings, FILE)
                for piece in cut
            ]
        )
        most = asked.form.max_completion_tokens
        self._meter.asked(choice_count=1, max_tokens=most, item_counts={"audio": len(items)})
        places = [(piece.start_s, piece.end_s) for piece in cut]

        async def ask(asking: Asking, take: Callable[[Frames], None]) -> None:
            item, (start, end) = items[asking.piece], places[asking.piece]
            await self._ask(asked.request_for(item, end - start, asking), item, take)

        most_at_once = self._gateway.settings.max_parallel_pieces
        return Transcribing(asked.question, places, ask, self._deadline, most_at_once)

    async def _ask(
        self,
        request: llm_service_pb2.GenerateRequest,
        item: ResolvedItem,
        take: Callable[[Frames], None],
    ) -> None:
        """Has one piece written down."""
        assignment = Assignment(request, [item], item.item.key, self._deadline, SPEECH_NAMES)
        async with self._gateway.conductor.generate(assignment) as frames:
            async for batch in frames:
                take(batch)

    def _take_pieces(self, byte_count: int) -> None:
        """What was cut goes on as its pieces: the upload is not needed any more."""
        if byte_count > self._piece_byte_count:
            self._holding.drop_body()
            # Another replica may have begun with it.
            self._holding.take_media(byte_count - self._piece_byte_count)
            self._piece_byte_count = byte_count

    async def parts(self, transcribing: Transcribing) -> AsyncGenerator[Part]:
        """Has the recording written down, and measures it.

        Raises:
            PerceptError: the request failed.
        """
        with self._measured_failures():
            reason = "stop"
            async with aclosing(transcribing.parts()) as parts:
                async for part in parts:
                    for frame in part.frames:
                        reason = self._measured(part.index, frame) or reason
                    yield part
            self._meter.finish(reason)
            self._meter.complete(self._usage, self._timings)

    @contextmanager
    def _measured_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as fault:
            error = as_percept_error(fault)
            self._meter.fail(error)
            raise error from fault
        except (asyncio.CancelledError, GeneratorExit):
            self._meter.cancel()
            raise

    def _measured(self, index: int, frame: llm_service_pb2.GenerateResponse) -> str | None:
        if frame.HasField("delta"):
            self._meter.delta(index, len(frame.delta.token_ids))
            return None
        usage, timings = frame.finish.usage, frame.finish.timings
        self._usage.prompt_token_count += usage.prompt_token_count
        self._usage.completion_token_count += usage.completion_token_count
        self._usage.cached_token_count += usage.cached_token_count
        self._timings.queue_seconds = max(self._timings.queue_seconds, timings.queue_seconds)
        self._timings.prefill_seconds += timings.prefill_seconds
        self._timings.decode_seconds += timings.decode_seconds
        return finish_reason(frame.finish)


async def _whole(work: _SpeechWork, asked: SpeechRequest) -> Response:
    transcribing = await work.opened(asked)
    async with aclosing(work.parts(transcribing)) as parts:
        async for _ in parts:
            pass
    return _response(transcribing, asked)


def _response(transcribing: Transcribing, asked: SpeechRequest) -> Response:
    answers = transcribing.answers
    seconds = answers[-1].end_s
    form = asked.form.response_format
    if form == "json":
        return json_response(json_object(answers, asked, seconds))
    if form == "verbose_json":
        return json_response(verbose_object(answers, asked, seconds, transcribing.language))
    if form == "srt":
        return PlainTextResponse(to_srt(segments(answers, asked.question)))
    if form == "vtt":
        return PlainTextResponse(to_vtt(segments(answers, asked.question)), media_type="text/vtt")
    return PlainTextResponse(whole_text(answers, asked.question) + "\n")


async def _events(work: _SpeechWork, asked: SpeechRequest) -> AsyncGenerator[list[Json], None]:
    """The events that can be sent at once, time after time."""
    writer = TextStream(asked)
    transcribing = await work.opened(asked)
    async with aclosing(work.parts(transcribing)) as parts:
        async for part in parts:
            if events := writer.events(part):
                yield events
    done = json_object(transcribing.answers, asked, transcribing.answers[-1].end_s)
    yield [{"type": "transcript.text.done", **done}]
