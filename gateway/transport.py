"""The seam between HTTP and Triton: what the gateway needs of a client, and nothing more."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from client.embeddings import Embeddings, Texts
from client.wire import GenerateRequest, GenerateResponse


class Transport(Protocol):
    """The interface of `client.triton.AsyncTritonClient` that the gateway uses; errors are WireError."""

    def generate(
        self, model: str, request: GenerateRequest, *, request_id: str | None = None
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Yield the responses of one generation; closing the generator cancels it."""

    async def embed(self, model: str, texts: Texts) -> Embeddings:
        """Return the vectors of up to MAX_BATCH texts, all strings or all lists of token ids."""

    async def embedding_models(self) -> list[str]:
        """Return the names of the models that can embed."""

    async def models(self) -> list[str]:
        """Return the names of the models that can generate."""

    async def readiness(self) -> dict[str, str]:
        """Return the models that are or should be loaded, each with what keeps it from answering, or ""."""

    async def server_ready(self) -> bool:
        """Return whether Triton takes requests."""

    async def close(self) -> None:
        """Release the connection."""
