"""The web application: routes, their order of checks, and errors in OpenAI's shape.

Knows what stands in front of what. Does not know how a request is worked on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gateway.access import AccessLog
from gateway.admission import Admission
from gateway.auth import KeyCheck
from gateway.description import describe
from gateway.errors import error_object, error_response, json_response
from gateway.parts import Gateway
from gateway.routes import audio, chat, completions, models, system
from gateway.version import VERSION
from shared.errors import PerceptError

_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(gateway: Gateway) -> FastAPI:
    """Builds the application; it starts and closes the gateway's parts with itself."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await gateway.start()
            yield
        finally:
            await gateway.close()

    app = FastAPI(
        title="Percept",
        version=VERSION,
        summary="The OpenAI chat format in front of encoder and LLM services.",
        lifespan=lifespan,
        # The pages of both would load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.gateway = gateway
    describe(app)
    for router in (chat.router, completions.router, audio.router, models.router, system.router):
        app.include_router(router)
    app.add_exception_handler(PerceptError, _on_typed)
    app.add_exception_handler(HTTPException, _on_http)
    # Innermost first.
    app.add_middleware(
        Admission,
        max_count=gateway.settings.max_concurrent_requests,
        budget=gateway.budget,
        max_media_byte_count=gateway.settings.max_request_media_byte_count,
        send_timeout_s=gateway.settings.client_timeout_s,
        metrics=gateway.metrics,
    )
    app.add_middleware(KeyCheck, keys=gateway.settings.api_key)
    app.add_middleware(AccessLog, metrics=gateway.metrics)
    return app


async def _on_typed(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _on_http(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        text = f"Unknown request URL: {request.method} {request.url.path[:256]}."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        text = f"Not allowed to {request.method} on {request.url.path[:256]}."
    else:
        text = str(error.detail)
    code = _CODES.get(error.status_code)
    response = json_response(error_object(text, "invalid_request_error", None, code), error.status_code)
    response.headers.update(error.headers or {})
    return response
