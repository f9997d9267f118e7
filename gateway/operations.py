"""The endpoints for whoever runs the gateway: liveness, readiness, metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from client.wire import WireError
from gateway.metrics import Metrics
from gateway.transport import Transport


@dataclass(frozen=True)
class Operations:
    """The endpoints and what they look at."""

    transport: Transport
    metrics: Metrics

    def install(self, app: FastAPI) -> None:
        """Add the endpoints."""
        add = partial(app.add_api_route, methods=["GET"], tags=["operations"])
        add("/livez", self.livez)
        add("/readyz", self.readyz)
        add("/metrics", self.exposition)

    async def livez(self) -> JSONResponse:
        """Say that the gateway's own process answers."""
        return JSONResponse({"status": "alive"})

    async def readyz(self) -> JSONResponse:
        """Say whether requests can be answered: Triton and each model by name; 503 when not."""
        try:
            parts = await self._parts()
        except WireError as error:
            parts = {"triton": error.message, "models": {}}
        models = parts["models"]
        ready = parts["triton"] == "ready" and bool(models) and set(models.values()) == {"ready"}
        status = "ready" if ready else "not ready"
        return JSONResponse({"status": status, **parts}, 200 if ready else 503)

    async def exposition(self) -> Response:
        """Return the metrics for Prometheus."""
        return Response(self.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    async def _parts(self) -> dict[str, Any]:
        triton = "ready" if await self.transport.server_ready() else "not ready"
        troubles = await self.transport.readiness()
        models = {name: f"not ready: {why}" if why else "ready" for name, why in troubles.items()}
        return {"triton": triton, "models": models}
