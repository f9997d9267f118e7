"""One answer while it is made: its choices run on Triton, its events or document come out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import structlog

from client.wire import GenerateResponse, WireError
from gateway.errors import ApiError, from_wire, internal
from gateway.generation import Choice, Choices, side_by_side
from gateway.metrics import Metrics
from gateway.openai_requests import Sampling
from gateway.openai_responses import Answer, usage_of
from gateway.sse import DONE, event
from gateway.transport import Transport

logger = structlog.get_logger("gateway")


class Engine:
    """Triton as the runs see it: a transport, and a bound on what may run at once."""

    def __init__(self, transport: Transport, metrics: Metrics, *, max_running: int) -> None:
        self.transport = transport
        self.metrics = metrics
        self._max_running = max_running
        self._running = 0

    def enter(self, count: int) -> None:
        """Count `count` generations in; ApiError 503 when that is more than may run."""
        if self._running + count > self._max_running:
            message = (
                f"The gateway is overloaded: {self._running} of {self._max_running} generations run already."
            )
            raise ApiError(503, message, code="overloaded", retry=True)
        self._change(count)

    def leave(self, count: int) -> None:
        """Count them out."""
        self._change(-count)

    def _change(self, by: int) -> None:
        self._running += by
        self.metrics.running.set(self._running)


class Run:
    """The choices of one request: either `document`, or `start`, `events`, and `close`, whatever came."""

    def __init__(self, engine: Engine, body: Sampling, answer: Answer) -> None:
        self._engine = engine
        self._body = body
        self._answer = answer
        self._requests = body.requests()
        self._choices: Choice | Choices | None = None
        self._last: dict[int, GenerateResponse] = {}

    async def start(self) -> None:
        """Have every choice's first response: an error up to here is an HTTP status. Raises ApiError."""
        started, model, transport = time.perf_counter(), self._body.model, self._engine.transport
        self._engine.enter(len(self._requests))
        self._choices = side_by_side(
            [
                transport.generate(model, request, request_id=f"{self._answer.id}-{index}")
                for index, request in enumerate(self._requests)
            ]
        )
        try:
            await self._choices.start()
        except WireError as error:
            await self.close()
            raise self._api_error(error) from error
        except BaseException:
            await self.close()
            raise
        self._engine.metrics.first_token_seconds.labels(model).observe(time.perf_counter() - started)

    async def events(self) -> AsyncIterator[str]:
        """Yield the stream's events; an error on the way is an event too."""
        try:
            async for chunk in self._chunks():
                yield event(chunk)
        except WireError as error:
            logger.warning("stream failed", error=str(error))
            yield event(self._api_error(error).json())
        except Exception:
            logger.exception("stream failed")
            yield event(internal().json())
        yield DONE

    async def document(self) -> dict[str, Any]:
        """Return the whole answer, of a run that has not started yet; raises ApiError."""
        await self.start()
        try:
            async for _ in self._responses():
                pass
        except WireError as error:
            raise self._api_error(error) from error
        finally:
            await self.close()
        return self._answer.document(self._in_order(), self._usage())

    async def close(self) -> None:
        """Stop what still runs, and count what was made."""
        choices, self._choices = self._choices, None
        if choices is None:
            return
        try:
            await choices.close()
        finally:
            self._engine.leave(len(self._requests))
        usage, metrics, model = self._usage(), self._engine.metrics, self._body.model
        metrics.prompt_tokens.labels(model).inc(usage["prompt_tokens"])
        metrics.generation_tokens.labels(model).inc(usage["completion_tokens"])

    async def _chunks(self) -> AsyncIterator[str]:
        for index in range(len(self._requests)):
            for chunk in self._answer.opening(index):
                yield chunk
        async for index, response in self._responses():
            for chunk in self._answer.pieces(index, response):
                yield chunk
        if self._body.include_usage:
            yield self._answer.usage_chunk(self._usage())

    async def _responses(self) -> AsyncIterator[tuple[int, GenerateResponse]]:
        assert self._choices is not None, "start comes first"
        async for index, response in self._choices:
            if response.finish_reason == "cancelled":
                raise WireError("unavailable", "engine", "the server cancelled the generation")
            self._last[index] = response
            yield index, response

    def _in_order(self) -> list[GenerateResponse]:
        return [response for _, response in sorted(self._last.items())]

    def _usage(self) -> dict[str, Any]:
        return usage_of(self._in_order(), self._body.n or 1)

    def _api_error(self, error: WireError) -> ApiError:
        if error.code == "internal":
            logger.error("generation failed", error=str(error))
        return from_wire(error, self._body.tensor_parameters())
