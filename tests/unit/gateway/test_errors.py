"""The HTTP table has a row for every error, and texts of bugs stay inside."""

from __future__ import annotations

import json

import pytest

from gateway.errors import HTTP_FORMS, chosen, error_response
from shared import errors


def leaves(kind: type[errors.PerceptError]) -> set[type[errors.PerceptError]]:
    found = {kind} if kind is not errors.PerceptError else set()
    return found.union(*(leaves(child) for child in kind.__subclasses__()))


def test_no_error_is_unmapped() -> None:
    assert leaves(errors.PerceptError) == set(HTTP_FORMS)


@pytest.mark.parametrize("kind", HTTP_FORMS)
def test_every_error_has_openai_shape(kind: type[errors.PerceptError]) -> None:
    response = error_response(kind("what happened", param="messages"))
    body = json.loads(response.body)
    assert set(body) == {"error"}
    assert body["error"]["message"] == "what happened"
    assert body["error"]["param"] == "messages"
    assert body["error"]["type"]
    assert 400 <= response.status_code < 600


def test_overload_says_when_to_come_back() -> None:
    assert error_response(errors.OverloadedError("full", retry_after=2.1)).headers["retry-after"] == "3"
    assert error_response(errors.OverloadedError("full", retry_after=0.0)).headers["retry-after"] == "1"


def test_texts_of_bugs_stay_inside() -> None:
    response = error_response(KeyError("secret"))
    assert response.status_code == 500
    assert b"secret" not in response.body


def test_long_texts_are_cut() -> None:
    assert len(error_response(errors.InvalidRequestError("x" * 100_000)).body) < 2000


def test_one_of_several_faults_stands_for_all() -> None:
    typed, bug, preferred = errors.UnavailableError("gone"), KeyError("bug"), StopIteration("preferred")
    group = ExceptionGroup("tasks", [bug, ExceptionGroup("inner", [typed]), preferred])
    assert chosen(group, StopIteration) is preferred
    assert chosen(group, OSError) is typed
    assert chosen(ExceptionGroup("tasks", [bug]), OSError) is bug
