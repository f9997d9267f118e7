"""The application: every part made here, from its settings and the transport."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from gateway import errors
from gateway.body import schemas
from gateway.catalogue import Catalogue
from gateway.embeddings import EmbeddingRequest, EmbeddingRoutes
from gateway.metrics import Metrics
from gateway.observation import Observation
from gateway.openai_chat import ChatRequest
from gateway.openai_requests import CompletionRequest
from gateway.openai_routes import OpenAI
from gateway.openai_run import Engine
from gateway.operations import Operations
from gateway.settings import Settings
from gateway.transport import Transport


def create_app(settings: Settings, transport: Transport) -> FastAPI:
    """Return the gateway over `transport`, which it closes when it shuts down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await transport.close()

    metrics = Metrics()
    engine = Engine(transport, metrics, max_running=settings.max_running)
    openai = OpenAI(engine, Catalogue(transport), settings.max_body_bytes, int(time.time()))
    app = FastAPI(title="Trident", lifespan=lifespan, redoc_url=None)
    openai.install(app)
    EmbeddingRoutes(transport, metrics, settings.max_body_bytes).install(app)
    Operations(transport, metrics).install(app)
    app.add_middleware(Observation, metrics=metrics)
    errors.install(app, settings.retry_after_s)
    _document_bodies(app)
    return app


def _document_bodies(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document.setdefault("components", {}).setdefault("schemas", {}).update(
            schemas(ChatRequest, CompletionRequest, EmbeddingRequest)
        )
        return document

    app.openapi = openapi  # type: ignore[method-assign]
