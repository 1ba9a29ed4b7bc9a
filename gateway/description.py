"""How /openapi.json describes what the framework cannot see by itself.

Bodies are read and checked by hand, so their schemas are added here. Knows
OpenAPI's form; does not know what the fields mean.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from gateway.completion_schema import CompletionRequest
from gateway.errors import HTTP_FORMS
from gateway.schemas import ChatCompletionRequest
from gateway.transcription_form import TranscriptionRequest

_BODIES: tuple[type[BaseModel], ...] = (ChatCompletionRequest, CompletionRequest, TranscriptionRequest)
"""What routes read by themselves."""

Json = dict[str, Any]

_FILE = {"type": "string", "format": "binary", "description": "The recording."}

_REFERENCE = "#/components/schemas/{model}"


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Body of every answer that is an error."""

    error: ErrorObject


ERROR_RESPONSES: dict[int | str, Json] = {
    status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase}
    for status in sorted({form.status for form in HTTP_FORMS.values()})
}
"""Every status that an error can have."""

ANSWER_RESPONSE: dict[int | str, Json] = {
    200: {
        "description": "The answer, whole or as server-sent events.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["id", "choices", "usage"]}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}


TRANSCRIPT_RESPONSE: dict[int | str, Json] = {
    200: {
        "description": "The transcript in the form that was asked for, whole or as server-sent events.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["text", "usage"]}},
            "text/plain": {"schema": {"type": "string"}},
            "text/vtt": {"schema": {"type": "string"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}


def form_body(model: type[BaseModel]) -> Json:
    """The description of a form with a file that a route reads by itself."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def json_body(model: type[BaseModel]) -> Json:
    """The description of a request body that a route reads by itself."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def describe(app: FastAPI) -> None:
    """Adds the schemas of bodies to the application's description."""
    generate = app.openapi

    def with_bodies() -> Json:
        description = generate()
        schemas = description.setdefault("components", {}).setdefault("schemas", {})
        for body in _BODIES:
            schema = body.model_json_schema(ref_template=_REFERENCE)
            schemas.update(schema.pop("$defs", {}))
            if body is TranscriptionRequest:
                # The file is no field of the type: it is read apart.
                schema["properties"] = {"file": _FILE, **schema["properties"]}
                schema["required"] = ["file"]
            schemas[body.__name__] = schema
        return description

    app.openapi = with_bodies  # type: ignore[method-assign]
