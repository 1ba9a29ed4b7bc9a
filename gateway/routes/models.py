"""Routes about the served models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.description import ERROR_RESPONSES
from gateway.errors import json_response
from gateway.parts import Gateway
from shared.families.catalogue import FamilyFacts

router = APIRouter(tags=["models"])


@router.get("/v1/models", responses=ERROR_RESPONSES)
async def list_models(request: Request) -> Response:
    """The names under which the model is served."""
    gateway: Gateway = request.app.state.gateway
    data = [_model_object(gateway, name) for name in gateway.model().names]
    return json_response({"object": "list", "data": data})


@router.get("/v1/models/{name:path}", responses=ERROR_RESPONSES)
async def retrieve_model(request: Request, name: str) -> Response:
    """One served model."""
    gateway: Gateway = request.app.state.gateway
    # An empty name is no model here, though it stands for the main one elsewhere.
    return json_response(_model_object(gateway, gateway.check_model(name or "/")))


def _model_object(gateway: Gateway, name: str) -> dict[str, Any]:
    model = gateway.model()
    return {
        "id": name,
        "object": "model",
        "created": model.description.start_seconds,
        "owned_by": "percept",
        "root": model.names[0],
        "parent": None,
        "max_model_len": model.description.max_model_len,
        "family": model.description.family,
        "modalities": model.item_limits,
        "embeddings": _embedding_fields(model.facts),
        "settings": _settings(model.facts),
    }


def _embedding_fields(facts: FamilyFacts | None) -> dict[str, dict[str, list[str]]]:
    """What precomputed embeddings of each modality consist of."""
    if facts is None:
        return {}
    return {
        modality: {"required": list(fields.required), "optional": list(fields.optional)}
        for modality, fields in facts.embedding_fields.items()
    }


def _settings(facts: FamilyFacts | None) -> dict[str, list[str]]:
    """Processor settings that one item of each modality may have of its own."""
    if facts is None:
        return {}
    return {modality: list(facts.settings_of(modality)) for modality in facts.modalities}
