"""OpenAI's endpoints: validate, run the choices on Triton, answer whole or as events."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from client.wire import WireError
from gateway.body import add_post, read_json
from gateway.catalogue import Catalogue
from gateway.errors import from_wire
from gateway.generation import unless_disconnected
from gateway.openai_chat import ChatRequest
from gateway.openai_forms import ChatForm, CompletionForm, Form
from gateway.openai_requests import CompletionRequest, Sampling
from gateway.openai_responses import Answer
from gateway.openai_run import Engine, Run
from gateway.sse import EventStream


@dataclass(frozen=True)
class OpenAI:
    """The endpoints and what they work with."""

    engine: Engine
    catalogue: Catalogue
    max_body_bytes: int
    started: int

    def install(self, app: FastAPI) -> None:
        """Add the endpoints under /v1."""
        add_post(app, "/v1/chat/completions", self.chat, ChatRequest)
        add_post(app, "/v1/completions", self.completions, CompletionRequest)
        app.add_api_route("/v1/models", self.models, methods=["GET"], tags=["OpenAI"])
        app.add_api_route("/v1/models/{model:path}", self.model, methods=["GET"], tags=["OpenAI"])

    async def chat(self, request: Request) -> Response:
        """Continue a conversation."""
        body = await read_json(request, ChatRequest, self.max_body_bytes)
        return await self._answer(
            request, body, ChatForm(log_probs=body.log_probs() is not None, tools=body.tool_names())
        )

    async def completions(self, request: Request) -> Response:
        """Continue a text."""
        body = await read_json(request, CompletionRequest, self.max_body_bytes)
        return await self._answer(request, body, CompletionForm(log_probs=body.log_probs() is not None))

    async def models(self) -> JSONResponse:
        """List the models."""
        return JSONResponse({"object": "list", "data": [self._model(name) for name in await self._names()]})

    async def model(self, model: str) -> JSONResponse:
        """Describe one model."""
        if model not in await self._names():
            await self._require(model)
        return JSONResponse(self._model(model))

    async def _names(self) -> list[str]:
        try:
            return await self.catalogue.listed()
        except WireError as error:
            raise from_wire(error, {}) from error

    async def _require(self, model: str) -> None:
        try:
            await self.catalogue.require(model)
        except WireError as error:
            raise from_wire(error, {}) from error

    def _model(self, name: str) -> dict[str, str | int]:
        return {"id": name, "object": "model", "created": self.started, "owned_by": "trident"}

    async def _answer(self, request: Request, body: Sampling, form: Form) -> Response:
        answer = Answer(form, body.model, include_usage=body.include_usage)
        structlog.contextvars.bind_contextvars(completion_id=answer.id, model=body.model)
        run = Run(self.engine, body, answer)
        await self._require(body.model)
        if body.stream:
            await unless_disconnected(request.receive, run.start())
            return EventStream(run.events(), run.close)
        return JSONResponse(await unless_disconnected(request.receive, run.document()))
