"""Which models there are, as Triton last said."""

from __future__ import annotations

from gateway.errors import ApiError
from gateway.transport import Transport


class Catalogue:
    """The served models' names; asks Triton again only for a name that it has not seen."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._names: list[str] = []

    async def refresh(self) -> list[str]:
        """Ask Triton and return the names; raises WireError `unavailable`."""
        self._names = await self._transport.models()
        return self._names

    async def listed(self) -> list[str]:
        """Ask Triton and return every model's name, also of those that embed only; raises WireError."""
        return sorted({*await self.refresh(), *await self._transport.embedding_models()})

    async def require(self, model: str) -> None:
        """Return if the model is served; ApiError 404 that lists the models otherwise."""
        if model not in self._names and model not in await self.refresh():
            served = ", ".join(self._names) or "none yet"
            message = f"The model {model!r:.100} does not exist; served: {served}."
            raise ApiError(404, message, code="model_not_found", param="model")
