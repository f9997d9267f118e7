"""Server-sent events as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.generation import unless_disconnected

DONE = "data: [DONE]\n\n"


def event(data: str) -> str:
    """Return one event; `data` is JSON without line breaks."""
    return f"data: {data}\n\n"


class EventStream(StreamingResponse):
    """A stream of events that calls `close` when it is over, however it ends: also when the client goes.

    It reads an event only when the one before has been taken by the connection, so a slow reader holds
    back the generation's stream instead of filling memory.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self.stream_response(send))
        finally:
            await self._close()
