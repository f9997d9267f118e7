"""POST /v1/embeddings: texts or token ids in, vectors out."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field

from client.embeddings import MAX_BATCH, Embeddings, Texts
from client.wire import WireError
from gateway.body import add_post, read_json
from gateway.errors import ApiError, from_wire, invalid
from gateway.generation import unless_disconnected
from gateway.metrics import Metrics
from gateway.openai_messages import Body
from gateway.transport import Transport

MAX_INPUTS = 2048
AT_ONCE = 4  # batches of one request under way; more would only crowd out others'
FLOAT_BYTES = 4

TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


def _as_list(value: Any) -> Any:
    """Return a list of inputs: one string, or one list of token ids, is one input."""
    is_one = isinstance(value, str) or (
        isinstance(value, list) and value and all(type(item) is int for item in value)
    )
    return [value] if is_one else value


class EmbeddingRequest(Body):
    """What the endpoint accepts; `dimensions` only as the model has them."""

    model: Annotated[str, Field(min_length=1)]
    input: Annotated[
        list[str] | list[TokenIds],
        BeforeValidator(_as_list, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
        Field(min_length=1, max_length=MAX_INPUTS),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


@dataclass(frozen=True)
class EmbeddingRoutes:
    """The endpoint and what it works with."""

    transport: Transport
    metrics: Metrics
    max_body_bytes: int

    def install(self, app: FastAPI) -> None:
        """Add the endpoint."""
        add_post(app, "/v1/embeddings", self.embeddings, EmbeddingRequest)

    async def embeddings(self, request: Request) -> JSONResponse:
        """Make a vector of each text."""
        body = await read_json(request, EmbeddingRequest, self.max_body_bytes)
        made = await unless_disconnected(request.receive, self._embed(body.model, body.input))
        self.metrics.prompt_tokens.labels(body.model).inc(made.num_tokens)
        return JSONResponse(document(body, made))

    async def _embed(self, model: str, texts: Texts) -> Embeddings:
        try:
            return await embed_all(self.transport, model, texts)
        except WireError as error:
            if error.code == "not_found":
                raise await self._unknown(model) from error
            raise from_wire(error, {"text_input": "input", "input_ids": "input", "graph": "input"}) from error

    async def _unknown(self, model: str) -> ApiError:
        served = ", ".join(await self.transport.embedding_models()) or "none yet"
        message = f"The model {model!r:.100} has no embeddings; served: {served}."
        return ApiError(404, message, code="model_not_found", param="model")


async def embed_all(transport: Transport, model: str, texts: Texts) -> Embeddings:
    """Return the vectors of any number of texts, in order; raises the first WireError."""
    batches = [texts[start : start + MAX_BATCH] for start in range(0, len(texts), MAX_BATCH)]
    gate = asyncio.Semaphore(AT_ONCE)

    async def embed(batch: Texts) -> Embeddings:
        async with gate:
            return await transport.embed(model, batch)

    tasks = [asyncio.ensure_future(embed(batch)) for batch in batches]
    try:
        made = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    vectors = tuple(vector for part in made for vector in part.vectors)
    return Embeddings(vectors, sum(part.num_tokens for part in made))


def document(body: EmbeddingRequest, made: Embeddings) -> dict[str, Any]:
    """Return the answer in OpenAI's form; ApiError 400 for other dimensions than the model's."""
    size = len(made.vectors[0]) // FLOAT_BYTES
    if body.dimensions not in (None, size):
        raise invalid(
            f"Invalid value for 'dimensions': {body.dimensions} was given; this model's vectors have {size} "
            "numbers, and a part of them is no embedding.",
            "dimensions",
        )
    return {
        "object": "list",
        "model": body.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": encoded(vector, body.encoding_format)}
            for index, vector in enumerate(made.vectors)
        ],
        "usage": {"prompt_tokens": made.num_tokens, "total_tokens": made.num_tokens},
    }


def encoded(vector: bytes, encoding: str | None) -> str | Sequence[float]:
    """Return a vector as base64 of its little-endian float32, or as numbers."""
    if encoding == "base64":
        return base64.b64encode(vector).decode()
    return struct.unpack(f"<{len(vector) // FLOAT_BYTES}f", vector)
