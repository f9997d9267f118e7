"""Running the choices of one HTTP request side by side, and giving up when its client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from client.wire import GenerateResponse

T = TypeVar("T")
Source = AsyncGenerator[GenerateResponse, None]


class Choice:
    """One generation as a stream of (0, response): as `Choices`, but without a task for each response."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._first: GenerateResponse | None = None

    async def start(self) -> None:
        """Wait until the generation has given its first response; raises its error."""
        self._first = await anext(self._source, None)

    async def __aiter__(self) -> AsyncIterator[tuple[int, GenerateResponse]]:
        response = self._first
        while response is not None:
            yield 0, response
            response = await anext(self._source, None)

    async def close(self) -> None:
        """Stop it in the engine if it still runs; waits until it is told."""
        await self._source.aclose()


class Choices:
    """Several generations merged into one stream of (index, response); holds at most one response of each."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._reads: dict[asyncio.Future[GenerateResponse | None], int] = {}

    async def start(self) -> None:
        """Wait until every generation has given its first response; raises the first error, all stopped."""
        for index in range(len(self._sources)):
            self._read(index)
        try:
            done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_EXCEPTION)
            for read in done:
                read.result()
        except BaseException:
            await self.close()
            raise

    async def __aiter__(self) -> AsyncIterator[tuple[int, GenerateResponse]]:
        while self._reads:
            done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
            for read in done:
                index = self._reads.pop(read)
                response = read.result()
                if response is not None:
                    yield index, response
                    self._read(index)

    async def close(self) -> None:
        """Stop what still runs in the engine; waits until it is told."""
        reads = list(self._reads)
        self._reads.clear()
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        await asyncio.gather(*(source.aclose() for source in self._sources), return_exceptions=True)

    def _read(self, index: int) -> None:
        self._reads[asyncio.ensure_future(anext(self._sources[index], None))] = index


def side_by_side(sources: Sequence[Source]) -> Choice | Choices:
    """Return the stream of these generations' responses."""
    return Choice(sources[0]) if len(sources) == 1 else Choices(sources)


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T:
    """Return the work's result; when the client goes first, cancel the work and raise ClientDisconnect."""
    working, gone = asyncio.current_task(), False
    assert working is not None, "an endpoint runs in a task"

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        working.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except BaseException as error:
        if gone and not working.uncancel():
            raise ClientDisconnect from error
        raise
    finally:
        watching.cancel()
