"""The text of one choice: tokens come in, pieces of an answer go out.

Joins detokenizer, stop strings and log probabilities. Knows one choice's
tokens; knows neither the engine nor the call that the pieces go to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llm_service.answer_measures import AnswerMeasures
from llm_service.detokenizer import open_detokenizer
from llm_service.engine.messages import TokenReport
from llm_service.sampling import GenerationPlan
from llm_service.stop_strings import StopStringFilter
from llm_service.text_tokenizer import TextTokenizer
from llm_service.token_table import TokenTable
from protos.llm.v1 import llm_service_pb2 as pb
from shared.errors import InternalError


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a choice ended, and what stopped it, where the caller had named it."""

    reason: Literal["stop", "length"]
    stop_string: str | None = None
    stop_token_id: int | None = None


class ChoiceText:
    """Collects what is new in one choice until it is taken.

    Attributes:
        ending: set once the choice is complete.
        reader: makes JSON of the whole text, for answers to tasks; to be set before the last token.
        token_count: tokens that came so far.
    """

    def __init__(
        self, index: int, plan: GenerationPlan, tokenizer: TextTokenizer, *, with_times: bool = False
    ) -> None:
        """Args:
        with_times: the last token tells when all were heard.
        """
        self._with_times = with_times
        self._token_seconds: list[float] = []
        self.ending: Ending | None = None
        self.reader: Callable[[str], str] | None = None
        self.token_count = 0
        self._index = index
        self._plan = plan
        self._table = tokenizer.table
        self._detokenizer = open_detokenizer(tokenizer.backend, tokenizer.table)
        self._stops = StopStringFilter(plan.stop_strings, include_stop_string=plan.include_stop_string)
        self._text: list[str] = []
        self._whole: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[pb.TokenLogprob] = []
        sampling = plan.sampling
        self._measures = AnswerMeasures(len(sampling.rules.leading)) if sampling.measured else None

    def add(self, report: TokenReport) -> bool:
        """Takes the next token; none may come after the ending. Returns whether this was the last."""
        assert self.ending is None
        self.token_count += 1
        self._token_ids.append(report.token_id)
        if self._measures is not None:
            self._measures.add(report)
        if report.logprob is not None:
            self._logprobs.append(token_logprob(self._table, report))
        hidden = report.stop_token_id is not None and not self._plan.include_stop_string
        self._add_text("" if hidden else self._detokenizer.add(report.token_id))
        if self.ending is None and report.finish is not None:
            self._end(report)
        return self.ending is not None

    def take(self) -> pb.GenerateResponse | None:
        """Returns a delta of what is new, or None where there is no new text and more will come."""
        if self.ending is None and not self._text:
            return None
        if not self._token_ids and not self._text:
            return None
        delta = pb.Delta(
            choice_index=self._index,
            text="".join(self._text),
            token_ids=self._token_ids,
            logprobs=self._logprobs,
        )
        if self.reader is not None:
            self._whole += self._text
        self._text, self._token_ids, self._logprobs = [], [], []
        return pb.GenerateResponse(delta=delta)

    def finish_frame(self) -> pb.Finish:
        """The frame that ends the choice, without the request's usage."""
        assert self.ending is not None
        finish = pb.Finish(choice_index=self._index, token_seconds=self._token_seconds)
        finish.reason = pb.FINISH_REASON_STOP if self.ending.reason == "stop" else pb.FINISH_REASON_LENGTH
        if self.ending.stop_string is not None:
            finish.stop_string = self.ending.stop_string
        elif self.ending.stop_token_id is not None:
            finish.stop_token_id = self.ending.stop_token_id
        if self._measures is not None:
            finish.speech_measures.CopyFrom(self._measures.message())
        if self.reader is not None:
            finish.task_answer = self.reader("".join([*self._whole, *self._text]))
        return finish

    def _add_text(self, text: str) -> None:
        match = self._stops.add(text, may_match=self.token_count >= self._plan.min_token_count)
        if match.text:
            self._text.append(match.text)
        if match.stop_string is not None:
            self.ending = Ending("stop", stop_string=match.stop_string)

    def _end(self, report: TokenReport) -> None:
        """The engine ended the choice: what was held back is text now."""
        self._add_text(self._detokenizer.finish())
        if self.ending is not None:
            return
        if held := self._stops.flush():
            self._text.append(held)
        assert report.finish is not None
        if self._with_times:
            if report.token_seconds is None:
                raise InternalError("the engine could not tell when tokens were heard; the log says why")
            self._token_seconds = report.token_seconds
        named = report.stop_token_id in self._plan.stop_token_ids
        self.ending = Ending(report.finish, stop_token_id=report.stop_token_id if named else None)


def token_logprob(table: TokenTable, report: TokenReport) -> pb.TokenLogprob:
    """Writes a token's log probability and those of its alternatives."""
    assert report.logprob is not None
    return pb.TokenLogprob(
        chosen=_alternative(table, report.token_id, report.logprob),
        top=[_alternative(table, token_id, logprob) for token_id, logprob in report.top or ()],
    )


def _alternative(table: TokenTable, token_id: int, logprob: float) -> pb.TokenLogprob.Alternative:
    return pb.TokenLogprob.Alternative(
        token_id=token_id, text=table.text(token_id), raw=table.raw(token_id), logprob=logprob
    )
