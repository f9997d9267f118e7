"""The outermost layer: a request's id, its log line and metrics, and an answer when all else failed."""

from __future__ import annotations

import re
import time
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import internal, respond
from gateway.metrics import Metrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CLIENT_CLOSED = 499
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

logger = structlog.get_logger("gateway")


class Observation:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, request_id = time.perf_counter(), _request_id(scope)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        exchange = Exchange(receive, send, request_id)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.disconnected = True
        except Exception:
            logger.exception("request failed")
            if exchange.status:
                raise
            await respond(internal(), 0)(scope, exchange.receive, exchange.send)
        finally:
            self._record(scope, exchange, time.perf_counter() - started)

    def _record(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        status, method = exchange.status or _CLIENT_CLOSED, scope["method"]
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.requests.labels(method if method in _METHODS else "other", route, status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if exchange.disconnected:
            self._metrics.disconnects.inc()
        logger.info(
            "request",
            method=method,
            path=scope["path"],
            status=status,
            seconds=round(seconds, 4),
            disconnected=exchange.disconnected,
        )


class Exchange:
    """One request and its answer, looked at on their way through."""

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self.status = 0
        self.disconnected = False
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._complete = False

    async def receive(self) -> Message:
        """Pass a message on; note the client's leaving unless it has all it asked for."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._complete:
            self.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on; the answer's head gets the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
        await self._send(message)


def _request_id(scope: Scope) -> str:
    """Return the client's own id if it is harmless, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex
