"""Reading a request's body: bounded, JSON, validated, and described in the OpenAPI document."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from gateway.errors import ApiError, from_validation

Model = TypeVar("Model", bound=BaseModel)


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


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """Return the `openapi_extra` that describes a JSON body of `model`."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def schemas(*models: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI components that `documented` refers to."""
    components: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= schema.pop("$defs", {})
        components[model.__name__] = schema
    return components
