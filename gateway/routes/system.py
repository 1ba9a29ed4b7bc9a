"""Routes about the gateway itself: health, version, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from gateway.engine_metrics import ask_services
from gateway.errors import json_response
from gateway.parts import Gateway
from gateway.replicas import ReplicaSet
from gateway.version import VERSION

router = APIRouter(tags=["system"])


@router.get("/health", responses={503: {"description": "No LLM service is ready."}})
@router.get("/ping", include_in_schema=False)
@router.post("/ping", include_in_schema=False)
async def health(request: Request) -> Response:
    """200 while requests can be answered; 503 while no LLM service is ready.

    Without an encoder service, text is still answered: 200, "degraded".
    """
    gateway: Gateway = request.app.state.gateway
    has_llm = bool(gateway.llms.serving)
    has_encoder = bool(gateway.encoders.serving) or not gateway.settings.encoder
    status = "unavailable" if not has_llm else "ok" if has_encoder else "degraded"
    missing = [name for name, there in (("llm", has_llm), ("encoder", has_encoder)) if not there]
    body = {
        "status": status,
        "missing": missing,
        "llm": _counts(gateway.llms),
        "encoder": _counts(gateway.encoders),
    }
    return json_response(body, 200 if has_llm else 503)


def _counts(replicas: ReplicaSet[Any, Any]) -> dict[str, int]:
    return {"serving": len(replicas.serving), "known": len(replicas.replicas)}


@router.get("/version")
async def version() -> dict[str, str]:
    """The version of the gateway."""
    return {"version": VERSION}


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus' text format: the gateway's own numbers and those of the services."""
    gateway: Gateway = request.app.state.gateway
    services = CollectorRegistry()
    services.register(await ask_services(gateway.metrics.model_name(), gateway.llms, gateway.encoders))
    text = generate_latest(gateway.metrics.registry) + generate_latest(services)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
