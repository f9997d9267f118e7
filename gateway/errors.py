"""Errors in OpenAI's form: what is raised inside the gateway, and how every kind becomes one answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from client.wire import WireError

_PARAMETERS = {
    "text_input": "prompt",
    "input_ids": "prompt",
    "stop_words": "stop",
    "num_log_probs": "top_logprobs",
    "return_log_probs": "logprobs",
    "exclude_input_in_output": "echo",
    "min_length": "min_tokens",
}


class ApiError(Exception):
    """An answer other than success; `param` is the request's field that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry = retry

    @property
    def document(self) -> dict[str, dict[str, str | None]]:
        """The body: `{"error": {message, type, param, code}}`."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def json(self) -> str:
        """Return the body as it stands in an event."""
        return json.dumps(self.document, ensure_ascii=False)


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """Return the error for a request whose field `param` has to change."""
    return ApiError(400, message, param=param, code=code)


def from_wire(error: WireError, parameters: Mapping[str, str]) -> ApiError:
    """Return the answer for what Triton said; `parameters` names tensors as this request named them."""
    if error.code == "invalid":
        param = parameters.get(error.field) or _PARAMETERS.get(error.field, error.field)
        return invalid(f"Invalid value for '{param}': {error.message}", param)
    if error.code == "not_found":
        return ApiError(
            404, f"The model does not exist: {error.message}", code="model_not_found", param="model"
        )
    if error.code == "overloaded":
        message = f"The server is overloaded, try again later ({error.field}: {error.message})"
        return ApiError(503, message, code="overloaded", retry=True)
    if error.code == "timeout":
        message = f"The request has waited for its turn as long as it may: {error.message}"
        return ApiError(503, message, code="timeout", retry=True)
    if error.code == "unavailable":
        message = f"The model server is not available: {error.message}"
        return ApiError(503, message, code="unavailable", retry=True)
    return internal()


def internal() -> ApiError:
    """Return the answer for a fault of ours: no detail goes out, the log has it under the request's id."""
    return ApiError(
        500, "The server failed; its log has the details under x-request-id.", code="internal_error"
    )


def from_validation(error: ValidationError) -> ApiError:
    """Return the answer for the first thing that is wrong with a body."""
    return _from_detail(error.errors(include_url=False)[0])


def _from_detail(detail: Any) -> ApiError:
    param = parameter_path(detail["loc"])
    match detail["type"]:
        case "json_invalid":
            return invalid(f"The body is not valid JSON: {detail['ctx']['error']}", None, "invalid_json")
        case "missing":
            return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
        case "extra_forbidden":
            return invalid(f"Unrecognized request argument supplied: {param}", param, "unknown_parameter")
        case "none_required":
            return invalid(
                f"'{param}' is not supported by this server; leave it out.", param, "unsupported_parameter"
            )
        case "contradiction":
            param = parameter_path((*detail["loc"], *filter(None, [detail["ctx"]["param"]])))
            return invalid(f"Invalid use of '{param}': {detail['msg']}.", param)
        case "value_error":
            return invalid(f"Invalid value for '{param}': {detail['ctx']['error']}", param)
    code = "invalid_type" if detail["type"].endswith("_type") else "invalid_value"
    given = f"{detail['input']!r:.100}"
    return invalid(f"Invalid value for '{param}': {detail['msg']}; got {given}.", param, code)


def parameter_path(location: Sequence[str | int]) -> str | None:
    """Write a location as OpenAI does: `messages[0].content`; None for the body itself."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".") or None


def respond(error: ApiError, retry_after_s: int) -> JSONResponse:
    """Return the HTTP answer for an error."""
    headers = {"retry-after": str(retry_after_s)} if error.retry else None
    return JSONResponse(error.document, error.status, headers)


_ROUTING: dict[int, tuple[str, Literal["unknown_url", "method_not_allowed"]]] = {
    404: ("Unknown request URL: {method} {path}. GET /docs lists what there is.", "unknown_url"),
    405: ("Not allowed to {method} on {path}.", "method_not_allowed"),
}


def install(app: FastAPI, retry_after_s: int) -> None:
    """Answer every error of the application in OpenAI's form."""

    async def on_api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return respond(error, retry_after_s)

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        template, code = _ROUTING.get(error.status_code, (str(error.detail), None))
        message = template.format(method=request.method, path=request.url.path)
        response = respond(ApiError(error.status_code, message, code=code), retry_after_s)
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
