"""Reading a request's body: bounded, JSON, validated, and described in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from gateway.errors import ApiError, from_validation

Model = TypeVar("Model", bound=BaseModel)
Endpoint = Callable[[Request], Awaitable[Response]]


async def read_json(request: Request, model: type[Model], limit: int) -> Model:
    """Return the body as `model`; ApiError 415 (not JSON by name), 413 (above `limit` bytes) or 400."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        given = f"got {content_type!r}" if content_type else "got none"
        raise ApiError(
            415, f"Send the header 'content-type: application/json'; {given}.", code="unsupported_media_type"
        )
    try:
        return model.model_validate_json(await _read(request, limit))
    except ValidationError as error:
        raise from_validation(error) from error


async def _read(request: Request, limit: int) -> bytes:
    body = bytearray()
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than the {limit} bytes allowed.", code="request_too_large")


class BodyRoute(APIRoute):
    """The route of an endpoint that takes the request as it is: there is nothing for FastAPI to resolve."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return the endpoint as it is."""
        return self.endpoint


def add_post(app: FastAPI, path: str, endpoint: Endpoint, model: type[BaseModel]) -> None:
    """Add an endpoint of OpenAI's API that reads a body of `model`, and describe the body."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    app.router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        tags=["OpenAI"],
        openapi_extra={"requestBody": body},
        route_class_override=BodyRoute,
    )


def schemas(*models: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI components that bodies refer to."""
    components: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= schema.pop("$defs", {})
        components[model.__name__] = schema
    return components
